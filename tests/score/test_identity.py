"""No result is taken for another's: what a row is known by, and which adapters are refused."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DEMO, read_lines, tiny_run, write_lines
from safetensors.torch import load_file, save_file

from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, DataError, ModelError
from cqa.schema.events import ModelStart
from cqa.score import adapters, decoder_engine
from cqa.score.config import ScoreConfig
from cqa.score.run import score

PAIRS = [
    {"id": "p1", "context": "the lamp", "good": " was lit", "bad": " ran"},
    {"id": "p2", "context": "she", "options": [" waited", " by"], "answer": 0},
]
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a model, a training run of two epochs, and items."""
    folder = tiny_run(tmp_path_factory.mktemp("made"))
    write_lines(folder / "pairs.jsonl", PAIRS)
    return folder


@pytest.fixture
def inputs(made, tmp_path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "inputs"))


def config_of(inputs: Path, **changes: Any) -> ScoreConfig:
    """Score the pairs under the base alone."""
    settings = {"out": inputs / "out", "pairs": (inputs / "pairs.jsonl",), "device": "cpu"}
    return ScoreConfig(model=str(inputs / "model"), **{**settings, **changes})


def adapted(inputs: Path, *epochs: int, **changes: Any) -> ScoreConfig:
    """Score the pairs under the base and some epochs' adapters."""
    folders = tuple(inputs / "run" / f"epoch-0{epoch}" for epoch in epochs)
    return config_of(inputs, adapter=folders, **changes)


def models_of(config: ScoreConfig) -> list[dict]:
    return json.loads((config.out / "meta.json").read_text())["models"]


def rows_of(config: ScoreConfig) -> list[dict]:
    return read_lines(config.out / "scores.jsonl")


def computed(config: ScoreConfig) -> int:
    """Score; return how many rows were computed."""
    counts: list[int] = []
    score(config, on_event=lambda e: counts.append(e.n) if e.event == "rows" else None)
    return sum(counts)


def edit_tensors(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_json(path: Path, edit: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def refusal(config: ScoreConfig) -> str:
    """Score with what cannot be scored; return what the user reads, nothing being written."""
    with pytest.raises(ModelError) as caught:
        score(config)
    assert caught.value.exit_code == 4
    assert not config.out.exists()
    return str(caught.value)


def test_every_row_leads_to_what_it_was_made_of(inputs):
    config = adapted(inputs, 1, 2)
    score(config)
    models = {model["model_key"]: model for model in models_of(config)}
    assert [models[row["model_key"]]["adapter"] for row in rows_of(config)] == [
        name for name in (None, "epoch-01", "epoch-02") for _ in PAIRS
    ]
    run = json.loads((inputs / "run" / "run.json").read_text())
    for model in models.values():
        assert (model["model"], model["tokenizer"]) == (
            run["model_digest"],
            run["tokenizer_digest"],
        )
        assert re.fullmatch("[0-9a-f]{64}", model["code"])
        if model["adapter"] is not None:
            made_of = {key: run[key] for key in run if key.endswith("_digest")}
            said = dict(model["adapter_origin"])
            assert said.pop("seed") == str(run["settings"]["seed"])
            assert said.pop("epoch") == model["adapter"].removeprefix("epoch-0")
            assert re.fullmatch("[0-9a-f]{64}", said.pop("recipe_digest"))
            assert said == made_of
    digests = [model["adapter_digest"] for model in models.values()]
    assert digests[0] is None
    assert len(set(digests)) == 3


def change_weights(inputs: Path) -> dict:
    edit_tensors(inputs / "model" / WEIGHTS, lambda t: t["model.norm.weight"].mul_(1.01))
    return {}


def change_model_config(inputs: Path) -> dict:
    edit_json(inputs / "model" / "config.json", lambda c: c.update(rms_norm_eps=1e-3))
    return {}


def change_vocabulary(inputs: Path) -> dict:
    def swap(state: dict) -> None:
        vocab = state["model"]["vocab"]
        vocab["w"], vocab["r"] = vocab["r"], vocab["w"]

    edit_json(inputs / "model" / "tokenizer.json", swap)
    return {}


def write_template(inputs: Path, text: str) -> dict:
    (inputs / "prompt.jinja").write_text(text)
    return {"template": str(inputs / "prompt.jinja")}


OTHERS: dict[str, tuple[str, Callable[[Path], dict]]] = {
    "weights": ("base model", change_weights),
    "config": ("base model", change_model_config),
    "vocabulary": ("tokenizer", change_vocabulary),
    "template": ("--template", lambda i: write_template(i, "{{ messages[0].content }} a")),
}
CHANGES: dict[str, Callable[[Path], dict]] = {
    "boundary": lambda _: {"boundary": "joint"},
    "null-token": lambda _: {"null_token": "a"},
    "score-eos": lambda _: {"score_eos": True},
    "dtype": lambda _: {"dtype": "bf16"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_rows_of_another_model_are_not_taken_for_those_of_this_one(inputs, change):
    before = config_of(inputs)
    assert computed(before) == len(PAIRS)
    assert computed(before) == 0
    after = replace(before, **change(inputs))
    assert computed(after) == len(PAIRS)
    old, new = rows_of(after)[: len(PAIRS)], rows_of(after)[len(PAIRS) :]
    assert {row["model_key"] for row in old}.isdisjoint(row["model_key"] for row in new)
    held = json.loads((after.out / "meta.json").read_text())
    assert [m["model_key"] for m in held["earlier_models"]] == [old[0]["model_key"]]
    assert [m["model_key"] for m in held["models"]] == [new[0]["model_key"]]


@pytest.mark.parametrize(("what", "change"), OTHERS.values(), ids=OTHERS)
def test_another_base_tokenizer_or_template_has_a_folder_of_its_own(inputs, what, change):
    before = config_of(inputs)
    assert computed(before) == len(PAIRS)
    held = {path: path.read_bytes() for path in before.out.iterdir() if path.suffix[:5] == ".json"}
    after = replace(before, **change(inputs))
    with pytest.raises(
        ConfigError, match=f"expected the {what} whose .*\nhint: name another --out"
    ):
        score(after)
    assert held == {path: path.read_bytes() for path in held}
    assert computed(replace(after, out=inputs / "other")) == len(PAIRS)


def test_other_text_of_the_same_template_file_is_another_template(inputs):
    config = config_of(inputs, **write_template(inputs, "{{ messages[0].content }} a"))
    assert computed(config) == len(PAIRS)
    write_template(inputs, "{{ messages[0].content }} b")
    with pytest.raises(ConfigError, match="expected the --template whose"):
        score(config)


def test_other_code_is_another_model(inputs, monkeypatch):
    config = config_of(inputs)
    assert computed(config) == len(PAIRS)
    monkeypatch.setattr("cqa.score.model_identity.code_digest", lambda *parts: "0" * 64)
    assert computed(config) == len(PAIRS)


def test_another_end_token_is_another_tokenizer(tmp_path):
    model = Path(shutil.copytree(DEMO / "model", tmp_path / "model"))

    def digest(end: str) -> str:
        edit_json(model / "tokenizer_config.json", lambda c: c.update(eos_token=end))
        return Tokenizer(model).digest

    assert digest("<|im_end|>") != digest("<|endoftext|>") == digest("<|endoftext|>")


@pytest.mark.parametrize("change", ["weights", "alpha"])
def test_adapter_that_was_written_anew_is_another_model(inputs, change):
    config = adapted(inputs, 1)
    assert computed(config) == 2 * len(PAIRS)
    folder = config.adapter[0]
    if change == "weights":
        edit_tensors(folder / ADAPTER, lambda t: t[f"{Q}.lora_B.weight"].mul_(1.5))
    else:
        edit_json(folder / "adapter_config.json", lambda c: c.update(lora_alpha=1))
    assert computed(config) == len(PAIRS)
    first, second = rows_of(config)[2:4], rows_of(config)[4:]
    for before, after in zip(first, second, strict=True):
        assert before["adapter"] == after["adapter"] == "epoch-01"
        assert before["options"] != after["options"]


def test_adapter_that_is_written_anew_during_the_run_ends_it(inputs):
    config = adapted(inputs, 1)

    def write_anew(event: dict) -> None:
        if event == ModelStart(adapter=None):
            edit_tensors(config.adapter[0] / ADAPTER, lambda t: t[f"{Q}.lora_B.weight"].mul_(1.5))

    with pytest.raises(ModelError, match=r"as it was at the start, got other bytes\nhint: .*again"):
        score(config, on_event=write_anew)
    assert {row["adapter"] for row in rows_of(config)} == {None}
    assert computed(config) == len(PAIRS)


def test_items_that_are_written_anew_during_the_run_end_it(inputs):
    config = config_of(inputs)

    def write_anew(event: dict) -> None:
        if event.event == "start":
            write_lines(config.pairs[0], [PAIRS[0], {**PAIRS[1], "context": "he"}])

    with pytest.raises(DataError, match="the items as they were at the start, got others"):
        score(config, on_event=write_anew)


def test_adapter_of_another_base_is_refused_unless_it_is_asked_for(inputs):
    change_weights(inputs)
    config = adapted(inputs, 1)
    said = refusal(config)
    assert "expected an adapter trained on this model (" in said
    assert "hint: name the base that it was trained on; --other-base" in said
    assert computed(replace(config, other_base=True)) == 2 * len(PAIRS)
    held = models_of(config)[1]
    assert held["model"] != held["adapter_origin"]["model_digest"]


def test_adapter_of_another_tokenizer_is_refused(inputs):
    change_vocabulary(inputs)
    assert "trained on this tokenizer (" in refusal(adapted(inputs, 1))


def test_adapter_of_other_tools_does_not_say_what_it_was_trained_on_and_is_taken(inputs):
    (inputs / "run" / "epoch-01" / "origin.json").unlink()
    config = adapted(inputs, 1)
    assert computed(config) == 2 * len(PAIRS)
    assert models_of(config)[1]["adapter_origin"] is None


@pytest.mark.parametrize("text", ["", "[]", '{"model_digest": 3}', "[" * 100_000], ids=len)
def test_damaged_origin_is_not_taken_for_none(inputs, text):
    path = inputs / "run" / "epoch-01" / "origin.json"
    path.write_text(text)
    assert refusal(adapted(inputs, 1)).startswith(f"{path}: expected a JSON object")


def no_effect(tensors: dict[str, torch.Tensor]) -> None:
    """Let every A look at one input that is always 0, by a B that is not zero: B·A·x = 0."""
    for name, tensor in tensors.items():
        tensor.zero_() if "lora_A" in name else tensor.fill_(1.0)
    tensors[f"{Q}.lora_A.weight"][0, 0] = 1e-30


def tiny_effect(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.mul_(1e-25)


def tiny_effect_of_all(tensors: dict[str, torch.Tensor]) -> None:
    """Nothing but rounding: sums over more columns are rounded elsewhere."""
    for tensor in tensors.values():
        tensor.mul_(1e-30)


@pytest.mark.parametrize("edit", [no_effect, tiny_effect, tiny_effect_of_all])
def test_adapter_under_which_no_score_changes_is_refused(inputs, edit):
    config = adapted(inputs, 2, 1)
    edit_tensors(inputs / "run" / "epoch-01" / ADAPTER, edit)
    said = refusal(config)
    assert said.startswith(f"{config.adapter[1]}: expected an adapter that changes a score, got")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda t: t.pop(f"{Q}.lora_A.weight"), "layers.0.self_attn.q_proj.lora_A, got none"),
        (
            lambda t: t.update({"more.lora_A.weight": torch.ones(2, 2)}),
            "alone, got more.lora_A.weight",
        ),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(2, 17)}), r"got: \(2, 17\)\nhint: "),
        (lambda t: t[f"{Q}.lora_B.weight"].fill_(torch.nan), "expected finite floats in"),
        (lambda t: [x.zero_() for n, x in t.items() if "lora_B" in n], "whose B is all zero"),
    ],
    ids=["missing", "extra", "misshaped", "not-finite", "all-zero"],
)
def test_adapter_whose_tensors_do_not_fit_ends_the_run_before_it_begins(inputs, edit, said):
    edit_tensors(inputs / "run" / "epoch-02" / ADAPTER, edit)
    assert re.search(said, refusal(adapted(inputs, 1, 2)))


def test_same_adapter_in_two_folders_is_refused(inputs):
    copy = shutil.copytree(inputs / "run" / "epoch-01", inputs / "copy")
    said = refusal(config_of(inputs, adapter=(inputs / "run" / "epoch-01", copy)))
    assert said == f"{copy}: expected each adapter once, got the same bytes as in " + str(
        inputs / "run" / "epoch-01"
    )


def test_epoch_that_is_gone_is_told_and_not_passed_over_in_silence(inputs):
    shutil.rmtree(inputs / "run" / "epoch-01")
    notes: list[str] = []
    score(
        config_of(inputs, run=(inputs / "run",)),
        on_event=lambda e: notes.append(e.text) if e.event == "note" else None,
    )
    assert f"{inputs / 'run'} has no adapter of epoch 1; not scored" in notes


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (
            "scores.jsonl",
            lambda line: re.sub(r'(nats": -?)(\d)', lambda m: m[1] + "9" + m[2], line),
        ),
        ("scores.jsonl", lambda line: line.replace('"id": "p1"', '"id": "p9"')),
        ("items.jsonl", lambda line: line.replace("lamp", "damp")),
    ],
    ids=["digits", "id", "text"],
)
def test_line_that_is_not_as_it_was_written_is_refused(inputs, name, damage):
    config = config_of(inputs)
    score(config)
    path = config.out / name
    first, *rest = path.read_text().splitlines(keepends=True)
    assert damage(first) != first
    path.write_text("".join([damage(first), *rest]))
    with pytest.raises(DataError, match=f"^{path}:1: expected the .* got a damaged line\nhint: "):
        score(config)
    path.write_text("".join(rest))
    assert computed(config) == (name == "scores.jsonl")


def reads_of(monkeypatch) -> dict[str, list[str]]:
    """Count which adapters are read, and which hashed."""
    counted: dict[str, list[str]] = {"read_adapter": [], "adapter_digest": []}
    for module, name in ((decoder_engine, "read_adapter"), (adapters, "adapter_digest")):
        real = getattr(module, name)

        def called(folder, *rest, name=name, real=real):
            counted[name].append(folder.name)
            return real(folder, *rest)

        monkeypatch.setattr(module, name, called)
    return counted


def test_adapters_that_fit_are_read_and_hashed_once(inputs, monkeypatch):
    config = adapted(inputs, 1, 2)
    epochs = ["epoch-01", "epoch-02"]
    files = [inputs / "run" / e / name for e in epochs for name in (ADAPTER, "adapter_config.json")]
    for file in files:
        os.utime(file, (1e9, 1e9))
    counted = reads_of(monkeypatch)
    score(config)
    assert {name: sorted(read) for name, read in counted.items()} == {
        "read_adapter": epochs, "adapter_digest": epochs,
    }  # fmt: skip
    rows = rows_of(config)
    monkeypatch.setattr(adapters, "KEPT_BYTES", 0)
    for file in files:
        file.touch()  # a moment ago: another write may not show
    for calls in counted.values():
        calls.clear()
    other = replace(config, out=inputs / "not-kept")
    score(other)
    assert {name: sorted(read) for name, read in counted.items()} == {
        "read_adapter": sorted(epochs * 2), "adapter_digest": sorted(epochs * 2),
    }  # fmt: skip
    assert rows_of(other) == rows
