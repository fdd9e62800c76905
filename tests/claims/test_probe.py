"""The study of probes as a command: its states and rows, its files, resume and refusals."""

import json
import signal
import warnings

import numpy as np
import pytest
import torch
from claims.asking import MODEL, reference_stats
from helpers import read_lines, write_lines
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors
from transformers import AutoModelForCausalLM, AutoTokenizer

from cqa.assets import STUDIES
from cqa.claims.probe import claim, logistic
from cqa.claims.probe.claim import Probe
from cqa.claims.probe.config import ProbeConfig
from cqa.claims.run import run_study
from cqa.errors import ConfigError, DataError
from cqa.interrupt import Interrupted

EXAMPLE = STUDIES / "probe.jsonl"


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr(logistic, "PENALTIES", (0.1, 1.0))  # for speed; test_probing has all

    def make(**changes) -> ProbeConfig:
        given = {
            "model": str(MODEL), "pairs": (EXAMPLE,), "out": tmp_path / "out", "device": "cpu",
            "swaps": 99,
        }  # fmt: skip
        return ProbeConfig(**{**given, **changes})

    return make


def ask(config: ProbeConfig):
    return run_study(Probe(config), config)


@torch.no_grad()
def their_states(context: str, text: str, adapter=None) -> np.ndarray:
    """Mean and last state of a text's tokens by layer, by transformers and PEFT in float64."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for an old name
            model = PeftModel.from_pretrained(model, adapter).double()
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([tokenizer(context)["input_ids"] + own])
    last = []
    norm = next(m for name, m in model.named_modules() if name.endswith("model.norm"))
    hook = norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    found = model(ids, output_hidden_states=True).hidden_states
    hook.remove()
    states = torch.cat((*found[:-1], *last))[:, -len(own) :]
    return torch.stack([states.mean(1), states[:, -1]], dim=1).numpy()


def test_the_example_runs_and_its_states_are_those_of_transformers(settings, trained):
    adapter = trained / "epoch-02"
    config = settings(adapter=(adapter,))
    result = ask(config)
    rows = {(r["id"], r["adapter"]): r for r in read_lines(config.out / "rows.jsonl")}
    items = read_lines(EXAMPLE)
    assert len({item["source_id"] for item in items}) >= 12
    assert len(rows) == 2 * len(items)
    item = items[1]
    for name, path in ((None, None), ("epoch-02", adapter)):
        row = rows[item["id"], name]
        file = config.out / "states" / row["model_key"] / f"{row['task_key']}.safetensors"
        held = load_file(file)["states"]
        good, bad = (their_states(item["context"], item[of], path) for of in ("good", "bad"))
        assert held == pytest.approx(good - bad, abs=1e-4)
        for place, of in enumerate(("good", "bad")):
            logp, _ = reference_stats(item["context"], item[of], path)
            assert row["logp_nats"][place] == pytest.approx(logp, abs=1e-4)
            assert row["n_bytes"][place] == len(item[of].encode())
    n_layers = held.shape[0]
    written = json.loads((config.out / "study.json").read_text())
    assert written == json.loads(json.dumps(result.to_json()))
    assert len(written["layers"]) == 2 * 2 * n_layers
    by_name = {(e.name, e.adapter): e for e in result.effects}
    best = max(x.auc for x in result.layers if x.layer > 0 and x.adapter is None)
    assert by_name["auc", None].value == best
    excess = by_name["excess", None]
    assert excess.value == pytest.approx(best - by_name["null", None].value)
    assert excess.p * 100 == pytest.approx(round(excess.p * 100))
    assert {f.name for f in result.findings if f.adapter} == {
        "told apart", "beyond length and S", "beyond the words", "changed",
    }  # fmt: skip
    assert any("only the difference to the null control counts" in n for n in result.notes) == (
        len(items) < held.shape[2]
    )
    assert (config.out / "figure.svg").read_bytes().startswith(b"<?xml")


def test_states_that_are_gone_or_damaged_are_named_and_computed_again(settings):
    config = settings()
    ask(config)
    whole = (config.out / "study.json").read_bytes()
    lines = (config.out / "rows.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[2])
    file = config.out / "states" / row["model_key"] / f"{row['task_key']}.safetensors"
    held = file.read_bytes()
    for damaged, got in ((held[:-4] + b"\0\0\0\1", "another file"), (b"", "no such file")):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=f"`{row['id']}` was written with, got {got}") as error:
            ask(config)
        assert row["states_sha256"] in error.value.hint
    (config.out / "rows.jsonl").write_text("".join(lines[:2] + lines[3:]))
    ask(config)
    assert file.read_bytes() == held
    assert (config.out / "study.json").read_bytes() == whole
    assert sorted((config.out / "rows.jsonl").read_text().splitlines(keepends=True)) == sorted(
        lines
    )


@pytest.mark.parametrize(
    ("reshaped", "got"),
    [((-1, 1, 2), "no such file"), ((1, 2, -1), "another file")],
)
def test_states_of_another_shape_are_named(settings, reshaped, got):
    config = settings()
    ask(config)
    row = read_lines(config.out / "rows.jsonl")[2]
    file = config.out / "states" / row["model_key"] / f"{row['task_key']}.safetensors"
    ((name, states),) = load_file(file).items()
    save_file({name: states.reshape(reshaped)}, file)
    with pytest.raises(DataError, match=f"`{row['id']}` was written with, got {got}"):
        ask(config)
    assert not (config.out / "study.json").exists()


def test_states_of_a_type_that_numpy_has_not_are_named(settings):
    config = settings()
    ask(config)
    row = read_lines(config.out / "rows.jsonl")[2]
    file = config.out / "states" / row["model_key"] / f"{row['task_key']}.safetensors"
    ((name, states),) = load_file(file).items()
    save_tensors({name: torch.from_numpy(states).bfloat16()}, file)
    with pytest.raises(DataError, match=f"`{row['id']}` was written with, got no such file"):
        ask(config)


def test_a_signal_ends_the_training_of_probes(settings, monkeypatch):
    config = settings()

    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the signal was put off")

    with monkeypatch.context() as patched:
        patched.setattr(claim, "probed", interrupted)
        with pytest.raises(Interrupted, match="stopped in the tests") as stopped:
            ask(config)
    assert stopped.value.command.startswith("cqa-fast study probe ")
    assert not (config.out / "study.json").exists()
    rows = (config.out / "rows.jsonl").read_bytes()
    ask(config)
    assert (config.out / "rows.jsonl").read_bytes() == rows
    assert (config.out / "study.json").exists()


def test_rows_and_states_do_not_hang_on_the_passes(settings, tmp_path):
    one, two = settings(out=tmp_path / "one", batch_tokens=1), settings(out=tmp_path / "two")
    ask(one)
    ask(two)
    for name in ("rows.jsonl", "figure.svg"):
        assert (one.out / name).read_bytes() == (two.out / name).read_bytes()
    files = [
        path.relative_to(one.out) for path in sorted((one.out / "states").rglob("*.safetensors"))
    ]
    assert len(files) == len(read_lines(EXAMPLE))
    for name in files:
        assert (one.out / name).read_bytes() == (two.out / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bad": ["a", "b"]}, r"bad\.jsonl:2: expected a good option and a bad one, got 3 options"),
        ({"bad": "word " * 5000}, r"bad\.jsonl:2: expected at most \d+ tokens"),
        ({"bad": "<|endoftext|>"}, r"bad\.jsonl:2: expected a text without control"),
        ({"id": "probe-01"}, r"bad\.jsonl:2: expected each id once"),
        (None, r"bad\.jsonl:1: expected items of 4 sources or more, got 3 sources"),
    ],
)
def test_bad_lines_are_named(settings, tmp_path, change, said):
    items = read_lines(EXAMPLE)[: 3 if change is None else None]
    if change is not None:
        items[1] = {**items[1], **change}
    pairs = write_lines(tmp_path / "bad.jsonl", items)
    with pytest.raises(DataError, match=said):
        ask(settings(pairs=(pairs,)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("n", [98, 100_001, 10**14])
def test_too_few_and_too_many_swaps_are_refused(settings, n):
    with pytest.raises(ConfigError, match="expected --swaps from 99 to 100,000, got"):
        settings(swaps=n)
