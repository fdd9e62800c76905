"""A run that starts from an adapter: its weights and nothing else of the run it comes from."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli.test_cli import invoke
from helpers import read_lines, tiny_model, write_lines
from observers import at_step, interrupt
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from train.runs import (
    MODEL,
    SAMPLES,
    adapter_bytes,
    config_of,
    log_of,
    steps_of,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from cqa.errors import ConfigError, CqaError, ModelError
from cqa.interrupt import Interrupted
from cqa.model.adapter_files import adapter_digest
from cqa.train.config import TrainConfig
from cqa.train.earlier import taken_over
from cqa.train.loop import train

PLAIN = {"dropout": 0.0, "neftune_alpha": 0.0}

pytestmark = pytest.mark.filterwarnings(  # PEFT asks transformers by an older name
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)


@pytest.fixture(scope="module")
def started(finished, data, tmp_path_factory) -> TrainConfig:
    """A run that starts from the second epoch of the finished one."""
    out = tmp_path_factory.mktemp("started") / "run"
    config = config_of(data, out, from_=finished[0] / "epoch-02", epochs=1, **PLAIN)
    train(config)
    return config


def test_weights_before_the_first_step_are_the_adapters_to_the_bit(finished, started):
    held, ours = adapter_bytes(finished[0]), adapter_bytes(started.out)
    name = "adapter_model.safetensors"
    assert ours[f"init/{name}"] == held[f"epoch-02/{name}"]
    assert ours[f"epoch-01/{name}"] != held[f"epoch-03/{name}"]  # no continuation of its schedule


def test_eval_loss_before_the_first_step_is_the_adapters_to_the_bit(finished, started):
    def losses(out: Path) -> dict[int, float]:
        return {e["epoch"]: e["eval_loss_nats"] for e in log_of(out) if e["event"] == "eval"}

    assert losses(started.out)[0] == losses(finished[0])[2]


def test_loss_of_the_first_step_is_the_adapters_in_peft(finished, started):
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(finished[0] / "epoch-02")).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    first, samples = steps_of(started.out)[0], {sample["id"]: sample for sample in SAMPLES}
    losses = []
    for name in first["sample_ids"]:
        prompt = tokenizer(samples[name]["prompt"]).input_ids
        response = tokenizer(samples[name]["response"] + "<|endoftext|>").input_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        losses.append(cross_entropy(logits, torch.tensor(response), reduction="none"))
    assert first["n_labels"] == sum(map(len, losses))
    expected = torch.cat(losses).double().mean().item()
    assert first["loss_nats"] == pytest.approx(expected, rel=1e-5)


def test_where_it_started_is_on_record(finished, started):
    digest = adapter_digest(finished[0] / "epoch-02")
    run = json.loads((started.out / "run.json").read_text())
    origin = json.loads((finished[0] / "epoch-02" / "origin.json").read_text())
    assert run["from"] == {"adapter_digest": digest, "origin": origin}
    assert run["settings"]["from"] == str(finished[0] / "epoch-02")
    made = json.loads((started.out / "epoch-01" / "origin.json").read_text())
    assert made["from_digest"] == digest
    note = log_of(started.out)[0]
    assert (note["event"], digest[:12] in note["text"]) == ("note", True)
    assert "from_digest" not in origin


def test_another_start_is_another_recipe_and_another_name_of_it_is_not(
    finished, started, data, tmp_path
):
    def recipe(out: Path) -> str:
        return json.loads((out / "epoch-01" / "origin.json").read_text())["recipe_digest"]

    copy = Path(shutil.copytree(finished[0] / "epoch-02", tmp_path / "copy"))
    same = replace(started, from_=copy, out=tmp_path / "same")
    other = replace(started, from_=finished[0] / "epoch-01", out=tmp_path / "other")
    for config in (same, other):
        train(config)
    assert recipe(same.out) == recipe(started.out) != recipe(other.out)
    assert adapter_bytes(same.out) == adapter_bytes(started.out)


def test_resuming_needs_the_adapter_no_more(finished, data, tmp_path):
    whole = config_of(data, tmp_path / "whole", from_=finished[0] / "epoch-01", epochs=2)
    train(whole)
    copy = Path(shutil.copytree(finished[0] / "epoch-01", tmp_path / "copy"))
    config = replace(whole, from_=copy, out=tmp_path / "run")
    with pytest.raises(Interrupted):
        train(config, on_event=at_step(3, interrupt))
    shutil.rmtree(copy)
    train(config, resume=True)
    assert adapter_bytes(config.out) == adapter_bytes(whole.out)


def test_rank_scaling_and_targets_are_taken_from_the_adapter(finished):
    implied = taken_over(TrainConfig, {"from_": str(finished[0] / "epoch-02")})
    targets = ("q", "k", "v", "o", "gate", "up", "down")
    assert implied == {"rank": 4, "alpha": 8.0, "rslora": True, "targets": targets}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"rank": 8}, "expected rank 4, as the adapter to start from has it, got: 8\nhint: leave"),
        ({"alpha": 4.0}, "expected alpha 8,"),
        ({"rslora": False}, "expected rslora True,"),
        ({"targets": ("q", "v")}, "got: q,v"),
        ({"from_": Path("nowhere")}, "nowhere: expected an adapter folder"),
        ({"from_": "INIT"}, "B is all zero"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_adapter_is_refused_before_anything_is_written(
    finished, data, tmp_path, changes, part
):
    from_ = finished[0] / ("init" if changes.get("from_") == "INIT" else "epoch-02")
    settings = {"from_": from_, **{k: v for k, v in changes.items() if v != "INIT"}}
    config = config_of(data, tmp_path / "run", **settings)
    with pytest.raises(CqaError) as caught:
        train(config)
    assert part in str(caught.value)
    assert not (config.out / "run.json").exists()


def test_adapter_of_some_layers_or_of_several_ranks_is_refused(finished, data, tmp_path):
    folder = Path(shutil.copytree(finished[0] / "epoch-02", tmp_path / "adapter"))
    (folder / "origin.json").unlink()
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**settings, "alpha_pattern": {"layers.0.self_attn.q_proj": 3}})
    )
    config = config_of(data, tmp_path / "run", from_=folder)
    with pytest.raises(ModelError, match="one rank and one alpha to start from, got patterns"):
        train(config)
    (folder / "adapter_config.json").write_text(
        json.dumps({**settings, "layers_to_transform": [0]})
    )
    path = folder / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if ".layers.0." in k}, path)
    with pytest.raises(ModelError, match="every layer to start from, got none of q in layer 1"):
        train(config)


def test_adapter_of_another_base_is_refused(finished, data, tmp_path):
    model = tiny_model(tmp_path / "model")
    samples = [{"prompt": "the lamp", "response": " was lit"}, {"prompt": "she", "response": " r"}]
    other = write_lines(tmp_path / "train.jsonl", samples)
    config = config_of(other, tmp_path / "run", from_=finished[0] / "epoch-02", validation="0")
    with pytest.raises(ModelError, match="adapter"):
        train(replace(config, model=str(model)))


def test_longer_schedule_is_refused_with_a_command_that_goes_on(finished, data, monkeypatch):
    out = finished[0]
    with pytest.raises(ConfigError, match="with --epochs 3, got with --epochs 4") as caught:
        train(config_of(data, out, epochs=4), resume=True)
    assert "new run" in caught.value.hint
    monkeypatch.chdir(out.parent)
    _, *args = shlex.split(caught.value.command)
    result = invoke(*args)
    assert result.exit_code == 0, result.stderr
    longer = Path(f"{out}-longer")
    assert len(read_lines(longer / "log.jsonl")) == 1 + 1 + 4 + 1  # note, eval, steps, eval
    weights = "adapter_model.safetensors"
    assert (longer / "init" / weights).read_bytes() == (out / "epoch-03" / weights).read_bytes()
    shutil.rmtree(longer)
