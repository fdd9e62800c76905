"""The doctor: what it names is what would run, and what is missing comes with what to do."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from cqa_fast.main import main

from cqa import doctor
from cqa.doctor import backend_problem, examine, report_text
from cqa.kernels.backend import fastest

CPU = torch.device("cpu")
GPU = "cuda:0"


@pytest.fixture
def with_gpu(monkeypatch) -> None:
    """A GPU that torch counts and that answers no work."""
    properties = SimpleNamespace(name="Model X", major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (3 * 10**9, 16 * 10**9))


def advice_of(folder: Path) -> str:
    return "\n".join(examine(folder).advice)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the rows of a machine without a GPU")
def test_every_row_is_what_would_be_chosen_and_has_been_tried(tmp_path):
    found = examine(tmp_path)
    chosen = {"cpu fp32": torch.float32, "cpu bf16": torch.bfloat16}
    assert found.machine.backends == {name: fastest(CPU, dtype) for name, dtype in chosen.items()}
    assert found.machine.backend_problems == {}


@pytest.mark.gpu
def test_kernels_of_every_gpu_are_tried(tmp_path):
    found = examine(tmp_path)
    assert found.machine.backends[f"{GPU} bf16"] == fastest(torch.device(GPU), torch.bfloat16)
    assert found.machine.backend_problems == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a GPU that does not answer")
@pytest.mark.usefixtures("with_gpu")
def test_gpu_that_answers_no_work_is_named_with_what_to_do(tmp_path):
    found = examine(tmp_path)
    assert found.machine.backends[f"{GPU} bf16"] == fastest(torch.device(GPU), torch.bfloat16)
    assert set(found.machine.backend_problems) == {f"{GPU} fp32", f"{GPU} bf16"}
    text = report_text(found)
    assert "Model X, sm 7.5, 3.0 of 16.0 GB free" in text
    assert f"note: {GPU} bf16 cannot be used: its " in text
    assert "Model X has no bf16 matrix units: use --dtype fp32" in text
    assert "no GPU" not in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ops_that_compute_something_else_are_found_out(monkeypatch, dtype):
    assert backend_problem(CPU, dtype) is None
    real = doctor.token_stats

    def spoiled(hidden, head, target, *, backend):
        stats = real(hidden, head, target, backend=backend)
        return replace(stats, logp=stats.logp + (0.05 if head.dtype == dtype else 0))

    monkeypatch.setattr(doctor, "token_stats", spoiled)
    assert "ops are wrong by 0.05" in backend_problem(CPU, dtype)


def test_ops_that_fail_are_named_by_their_first_line(monkeypatch, tmp_path):
    def fail(hidden, *_, **options):
        if hidden.dtype == torch.float32:
            raise RuntimeError("no such instruction\nmore")
        return SimpleNamespace(logp=torch.zeros(5))

    monkeypatch.setattr(doctor, "token_stats", fail)
    line = f"cpu fp32 cannot be used: its {fastest(CPU, torch.float32)} ops fail: no such instruct"
    assert line in advice_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("free_memory_bytes", lambda: 10**9, "under 4 GB of memory are free"),
        ("shutil.disk_usage", lambda _: SimpleNamespace(free=10**9), "under 10 GB of disk"),
        ("os.access", lambda *_: False, "cannot be written: name another --out"),
        ("torch.version.cuda", "13.0", "no device answers; nvidia-smi shows"),
        ("torch.version.cuda", None, "this torch is a CPU build"),
    ],
    ids=["memory", "disk", "folder", "driver", "cpu-build"],
)
def test_what_is_missing_comes_with_what_to_do(monkeypatch, tmp_path, name, value, advice):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(f"cqa.doctor.{name}", value)
    assert advice in advice_of(tmp_path)


@pytest.mark.parametrize("offline", [True, False])
def test_that_nothing_is_fetched_is_said_where_it_is_so(monkeypatch, tmp_path, offline):
    monkeypatch.setenv("HF_HUB_OFFLINE", str(int(offline)))
    assert ("hub ids are found only if" in advice_of(tmp_path)) is offline


def test_command_prints_text_or_one_object(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text, data = (CliRunner().invoke(main, ["doctor", *more]) for more in ([], ["--json"]))
    assert (text.exit_code, data.exit_code) == (0, 0)
    facts = json.loads(data.stdout)
    for name in (*facts["versions"], "platform", "memory", "disk", "gpu", *facts["backends"]):
        assert f"{name} " in text.stdout
    assert facts["folder"] == str(tmp_path)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["free_memory_bytes"] > 0 < facts["free_disk_bytes"]
