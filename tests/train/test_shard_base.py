"""A base that is spread over the ranks of a run: the numbers of one process, whoever is killed."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers import DEMO, read_lines, write_lines
from safetensors.torch import load_file, save_file
from train.runs import MODEL, SAMPLES, config_of
from train.test_ranks import ENVIRONMENT, LR, assert_same_run, children, flags, run, torchrun

from cqa.config import read_keywords
from cqa.errors import ConfigError
from cqa.schema.events import Step, TrainEvent
from cqa.study.config import CallbackTrainConfig
from cqa.study.in_loop_eval import train_with_callbacks
from cqa.train.loop import train

pytestmark = pytest.mark.filterwarnings(  # PEFT asks transformers by an older name
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)
WITH_PIECES = "import cqa.model.spread\ncqa.model.spread.PIECE_BYTES = 1\n"
MAIN = "from cqa_fast.main import main\nmain()\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "train.jsonl", SAMPLES)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """The run of one process that holds the whole base."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(config_of(data, out, lr=LR, grad_accum=3))
    return out


def scripted(command: list[str], script: Path, prelude: str) -> list[str]:
    """Return a torchrun command whose ranks run a prelude before the program."""
    script.write_text(prelude + MAIN)
    at = command.index("-m", 3)
    return [*command[:at], str(script), *command[at + 2 :]]


def test_two_ranks_end_as_one_process_and_their_adapter_is_whole(data, alone, tmp_path):
    """The head is read in two pieces; one rank has more passes than the other, or none to run."""
    out, pairs = tmp_path / "run", write_lines(tmp_path / "pairs.jsonl", pairs_of(6))
    command = torchrun(2, *flags(data, out, **{"pass-tokens": 90, "dev": pairs}), "--shard-base")
    done = run(scripted(command, tmp_path / "pieces.py", WITH_PIECES))
    assert done.returncode == 0, done.stderr
    log = out / "log.jsonl"
    kept = [line for line in read_lines(log) if line["event"] != "dev"]
    assert sum(line["event"] == "dev" for line in read_lines(log)) == 3
    write_lines(log, kept)
    assert_same_run(out, alone)
    held = json.loads((out / "run.json").read_text())
    assert (held["n_ranks"], held["settings"]["shard-base"]) == (2, True)
    assert_peft_loads_it(out / "epoch-03")


def pairs_of(n: int) -> list[dict]:
    return read_lines(DEMO / "literary.jsonl")[:n]


def assert_peft_loads_it(adapter: Path) -> None:
    """Every tensor of the file is found by PEFT, and nothing of it is missing there."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter)
    held = {
        name.replace(".default", ""): value
        for name, value in model.state_dict().items() if "lora_" in name
    }  # fmt: skip
    saved = load_file(adapter / "adapter_model.safetensors")
    assert held.keys() == saved.keys()
    assert all(torch.equal(held[name], saved[name]) for name in saved)
    assert all(value.any() for value in saved.values())


def test_killed_rank_ends_all_and_one_process_with_the_whole_base_goes_on(data, alone, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        torchrun(3, *flags(data, out), "--shard-base", "--recompute"), env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def n_steps() -> int:
        log = out / "log.jsonl"
        return log.read_bytes().count(b'"event": "step"') if log.exists() else 0

    while process.poll() is None and n_steps() < 4:
        time.sleep(0.02)
    os.kill(children(process.pid)["2"], signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert stderr.count("error: ") == 1, stderr
    assert f"error: {out}: expected all 3 ranks to go on, got one that ended or cannot be" in stderr
    assert f"with: torchrun --nproc-per-node 3 -m -- cqa_fast train --resume --out {out}" in stderr
    train(config_of(data, out, lr=LR, grad_accum=3), resume=True)
    held = json.loads((out / "run.json").read_text())
    assert [entry["n_ranks"] for entry in held["resumed"]] == [1]
    assert_same_run(out, alone)


def test_run_of_a_whole_base_goes_on_with_one_that_is_spread(data, alone, tmp_path):
    out = tmp_path / "run"

    def stop(event: TrainEvent) -> None:
        if isinstance(event, Step) and event.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config_of(data, out, lr=LR, grad_accum=3), on_event=stop)
    done = run(torchrun(2, "--resume", "--out", out, "--shard-base"))
    assert done.returncode == 0, done.stderr
    held = json.loads((out / "run.json").read_text())
    assert [entry["n_ranks"] for entry in held["resumed"]] == [2]
    assert_same_run(out, alone)


def test_bases_of_other_bytes_are_told_once(data, tmp_path):
    other = tmp_path / "model"
    shutil.copytree(MODEL, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    prelude = (
        "import os, sys\n"
        "if os.environ['RANK'] == '1':\n"
        f"    sys.argv[sys.argv.index('--model') + 1] = {str(other)!r}\n"
    )
    command = torchrun(2, *flags(data, tmp_path / "run"), "--shard-base")
    done = run(scripted(command, tmp_path / "other.py", prelude))
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "error: expected the same base model on every rank, got" in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()


def test_one_process_is_refused(data, tmp_path):
    settings = {"model": str(MODEL), "data": data, "out": tmp_path / "run", "shard_base": True}
    with pytest.raises(ConfigError, match="expected several processes with --shard-base, got one"):
        train_with_callbacks(read_keywords(CallbackTrainConfig, settings))
    with pytest.raises(ConfigError, match="expected shard-base without cuda-graphs, got: both"):
        read_keywords(CallbackTrainConfig, {**settings, "cuda_graphs": True})
    assert not (tmp_path / "run").exists()


def test_memory_that_runs_out_is_told_and_no_pass_is_run_in_parts(data, tmp_path):
    """The other rank is in the middle of the same pass, and could not follow."""
    prelude = (
        "import os, torch\n"
        "from cqa.model.decoder import Decoder\n"
        "from cqa.train import step\n"
        "run = step.forward_backward\n"
        "def fails(*given):\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise RuntimeError('[enforce fail] can\\'t allocate memory: 1 byte')\n"
        "    return run(*given)\n"
        "step.forward_backward = fails\n"
    )
    command = torchrun(2, *flags(data, tmp_path / "run"), "--shard-base")
    done = run(scripted(command, tmp_path / "full.py", prelude))
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "error: expected enough memory for training, got none" in done.stderr
    assert "hint: a lower --batch-tokens or --pass-tokens, --dtype bf16, or more" in done.stderr
