"""What stands beside an adapter: its tokenizer, and a card that the hub and people read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from train.runs import EPOCHS, MODEL, config_of, log_of
from transformers import AutoTokenizer

from cqa.model.adapter_files import adapter_digest
from cqa.train.card import base_licence
from cqa.train.loop import train


@pytest.mark.parametrize("name", ["init", *EPOCHS])
def test_tokenizer_loads_from_the_adapter_and_is_the_bases(finished, name):
    own, base = (AutoTokenizer.from_pretrained(path) for path in (finished[0] / name, MODEL))
    text = "She read the letter twice. 她把信扔进了炉子。"
    assert own(text).input_ids == base(text).input_ids
    assert own.special_tokens_map == base.special_tokens_map


def test_card_has_the_form_of_pefts_and_says_what_the_run_says(finished):
    out = finished[0]
    run = json.loads((out / "run.json").read_text())
    card = ModelCard.load(out / "epoch-02" / "README.md")
    assert card.data.to_dict() == {
        "base_model": str(MODEL), "library_name": "peft", "pipeline_tag": "text-generation",
        "tags": ["lora", "transformers"],
    }  # fmt: skip
    rows = dict(
        line.strip("|").strip().split(" | ", 1)
        for line in card.text.splitlines()
        if line.startswith("| ") and " | " in line[2:]
    )
    (loss,) = (e["eval_loss_nats"] for e in log_of(out) if e["event"] == "eval" and e["epoch"] == 2)
    assert rows["eval_loss"] == f"{loss:.4f} nats a token, on 3 samples held out"
    assert rows["data"] == f"7 samples (prompt), sha256 {run['data_digest']}"
    assert rows["base"].endswith(run["model_digest"])
    assert rows["licence of the base"] == "not named in its folder"
    assert (rows["rank"], rows["lr"], rows["seed"]) == ("4", "0.001", "11")
    assert rows["targets"] == "q, k, v, o, gate, up, down"
    assert "epoch 2 of 3" in card.text
    assert "eval_loss" not in (out / "init" / "README.md").read_text()


def test_adapter_is_the_same_without_what_stands_beside_it(finished, tmp_path):
    folder = finished[0] / "epoch-01"
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(folder / name, bare / name)
    assert adapter_digest(bare) == adapter_digest(folder)


HOSTILE = "a|b\n# *x* <script>"


def test_licence_of_the_base_and_hostile_names_stand_as_text(data, tmp_path):
    model = Path(shutil.copytree(MODEL, tmp_path / "m|odel <b>x*y*"))
    (model / "README.md").write_text(f"---\n{yaml.safe_dump({'license': HOSTILE})}---\n# A base\n")
    config = config_of(data, tmp_path / "run", epochs=1, rank=2, targets=("q",), placebo=True)
    train(replace(config, model=str(model)))
    card = ModelCard.load(tmp_path / "run" / "epoch-01" / "README.md")
    assert card.data.base_model == str(model)
    assert card.data.license == HOSTILE
    assert "<b>" not in card.text
    assert "<script>" not in card.text
    assert "\n# *x*" not in card.text
    assert "**A placebo:**" in card.text


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("---\n{[\n---\n", None),
        ("---\n- a\n---\n", None),
        ("license: mit", None),
        (b"---\nlicense: \xff\n---\n", None),
        (None, None),
    ],
)
def test_licence_is_read_from_the_head_of_a_card_alone(tmp_path, text, licence):
    if text is not None:
        (tmp_path / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert base_licence(tmp_path) == licence


def test_licence_of_a_converted_model_is_that_of_its_file(tmp_path):
    (tmp_path / "conversion.json").write_text('{"licence": "apache-2.0"}')
    assert base_licence(tmp_path) == "apache-2.0"
