"""A run folder: adapters, log, eval_loss, and what is held out."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import DEMO, write_lines
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from train.runs import (
    EPOCHS,
    MODEL,
    SAMPLES,
    STEPS_PER_EPOCH,
    TOTAL,
    adapter_bytes,
    config_of,
    log_of,
    steps_of,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from cqa.config import command_line, given_settings
from cqa.errors import DataError
from cqa.train.config import TrainConfig
from cqa.train.loop import train
from cqa.train.plan import make_plan

pytestmark = pytest.mark.filterwarnings(  # PEFT asks transformers by an older name
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)


def peft_model(adapter: Path) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(adapter)).eval()


def test_every_epoch_is_kept_beside_the_start(finished):
    out, _, result = finished
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        *EPOCHS, "init", "log.jsonl", "run.json", "state.safetensors",
    ]  # fmt: skip
    assert result.to_json() == {"run": str(out), "total_steps": TOTAL, "epochs": EPOCHS}
    weights = {n: b for n, b in adapter_bytes(out).items() if n.endswith(".safetensors")}
    assert len(set(weights.values())) == len(weights) == 4


def test_samples_of_two_files_are_learned_as_those_of_one(data, tmp_path):
    parts = [
        write_lines(tmp_path / f"{name}.jsonl", samples)
        for name, samples in (("a", SAMPLES[:4]), ("b", SAMPLES[4:]))
    ]
    config = replace(config_of(data, tmp_path / "run"), data=tuple(parts))
    whole, both = make_plan(config_of(data, tmp_path / "run")), make_plan(config)
    assert [s.ids for s in both.train] == [s.ids for s in whole.train]
    assert [s.id for s in both.validation] == [s.id for s in whole.validation]
    assert both.data_digest == whole.data_digest
    again = command_line(type(config), "train", given_settings(config))
    assert f"--data {parts[0]} --data {parts[1]} " in again


@pytest.mark.parametrize("name", ["init", *EPOCHS])
def test_peft_loads_every_kept_adapter(finished, name):
    folder = finished[0] / name
    model = peft_model(folder)
    lora = model.peft_config["default"]
    assert (lora.r, lora.lora_alpha, lora.use_rslora, lora.lora_dropout) == (4, 8, True, 0.05)
    held = load_file(folder / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(model)
    assert loaded.keys() == held.keys()
    assert all(torch.equal(loaded[key], held[key]) for key in held)


def test_init_is_pefts_uniform_a_and_zero_b(finished):
    held = load_file(finished[0] / "init" / "adapter_model.safetensors")
    for name, tensor in held.items():
        if "lora_B" in name:
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5  # Kaiming-uniform with a = √5
            assert 0.95 * bound < tensor.abs().max() <= bound
            assert abs(tensor.mean()) < 0.1 * bound


def test_every_module_starts_from_its_own_a(finished):
    held = load_file(finished[0] / "init" / "adapter_model.safetensors")
    starts = [tuple(t.flatten()[:8].tolist()) for name, t in held.items() if "lora_A" in name]
    units = {tuple(x / abs(start[0]) for x in start) for start in starts}  # whatever their bounds
    assert len(units) == len(starts) == 6 * 7


def test_log_has_the_fields_of_the_contract(finished):
    steps = steps_of(finished[0])
    evals = [event for event in log_of(finished[0]) if event["event"] == "eval"]
    assert {*map(frozenset, steps)} == {
        frozenset({
            "event", "step", "epoch", "loss_nats", "lr", "grad_norm", "sample_ids", "n_tokens",
            "n_labels", "step_s", "tokens_per_s",
        })
    }  # fmt: skip
    assert {*map(frozenset, evals)} == {
        frozenset({"event", "step", "epoch", "eval_loss_nats", "n_labels", "eval_s"})
    }


def test_log_lists_every_step_and_an_eval_before_the_first_and_after_each_epoch(finished):
    order = [(e["event"], e.get("step"), e["epoch"]) for e in log_of(finished[0])]
    expected = [("eval", 0, 0)]
    for step in range(1, TOTAL + 1):
        epoch = (step + STEPS_PER_EPOCH - 1) // STEPS_PER_EPOCH
        expected.append(("step", step, epoch))
        if step % STEPS_PER_EPOCH == 0:
            expected.append(("eval", step, epoch))
    assert order == expected


def test_log_counts_all_tokens_fed_and_the_learned_ones(finished):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lengths = {
        s["id"]: tuple(len(tokenizer(s[key]).input_ids) for key in ("prompt", "response"))
        for s in SAMPLES
    }
    for step in steps_of(finished[0]):
        prompts, responses = zip(*(lengths[name] for name in step["sample_ids"]), strict=True)
        n_samples = len(step["sample_ids"])  # each has an end token
        assert step["n_labels"] == sum(responses) + n_samples
        assert step["n_tokens"] == sum(prompts) + sum(responses) + n_samples
        assert step["tokens_per_s"] == pytest.approx(step["n_tokens"] / step["step_s"], rel=1e-2)


def test_observer_sees_the_start_and_then_what_is_logged(finished):
    out, events, _ = finished
    start, *logged = events
    assert [event.to_json() for event in logged] == log_of(out)
    held = json.loads((out / "run.json").read_text())
    expected = (
        "total_steps",
        "steps_per_epoch",
        "n_train",
        "n_validation",
        "n_parameters",
        "dtype",
    )
    assert {key: getattr(start, key) for key in expected} == {key: held[key] for key in expected}
    assert (start.event, start.step, start.device) == ("start", 0, "cpu")


def test_each_epoch_takes_every_training_sample_once_in_its_own_order(finished):
    held = json.loads((finished[0] / "run.json").read_text())
    trained = {s["id"] for s in SAMPLES} - set(held["validation_ids"])
    steps = steps_of(finished[0])
    orders = [
        [name for step in steps if step["epoch"] == epoch for name in step["sample_ids"]]
        for epoch in (1, 2, 3)
    ]
    assert all(sorted(order) == sorted(trained) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_last_partial_window_is_stepped(finished):
    sizes = [len(step["sample_ids"]) for step in steps_of(finished[0])]
    assert sizes == [2, 2, 2, 1] * 3


def test_run_json_holds_settings_counts_and_identities(finished, data):
    held = json.loads((finished[0] / "run.json").read_text())
    settings = held["settings"]
    assert settings["lr"] == 1e-3
    assert settings["targets"] == ["q", "k", "v", "o", "gate", "up", "down"]
    assert settings["neftune-alpha"] == 5.0
    assert settings["data"] == [str(data)]
    assert held["format"] == "prompt"
    assert (held["n_train"], held["n_validation"], held["too_long_ids"]) == (7, 3, [])
    assert (held["steps_per_epoch"], held["total_steps"]) == (STEPS_PER_EPOCH, TOTAL)
    assert held["scaling"] == pytest.approx(8 / 4**0.5)
    assert held["n_parameters"] == sum(
        t.numel()
        for t in load_file(finished[0] / "epoch-01" / "adapter_model.safetensors").values()
    )
    assert held["dtype"] == "float32"
    assert held["device"]
    assert held["n_threads"] == torch.get_num_threads()
    assert held["data_digest"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert all(len(held[f"{part}_digest"]) == 64 for part in ("model", "tokenizer"))
    assert held["versions"]["torch"] == torch.__version__
    assert {"cqa_fast", "python", "transformers", "safetensors"} < held["versions"].keys()


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_eval_loss_is_the_mean_over_all_labelled_validation_tokens(finished, epoch):
    out, _, _ = finished
    held = json.loads((out / "run.json").read_text())["validation_ids"]
    model, tokenizer = (
        peft_model(out / (f"epoch-{epoch:02d}" if epoch else "init")),
        AutoTokenizer.from_pretrained(MODEL),
    )
    losses = []
    for sample in SAMPLES:
        if sample["id"] in held:
            prompt = tokenizer(sample["prompt"]).input_ids
            response = tokenizer(sample["response"] + "<|endoftext|>").input_ids
            with torch.no_grad():
                logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            losses.append(cross_entropy(logits, torch.tensor(response), reduction="none"))
    event = next(e for e in log_of(out) if e["event"] == "eval" and e["epoch"] == epoch)
    assert event["n_labels"] == sum(map(len, losses))
    assert event["eval_loss_nats"] == pytest.approx(
        torch.cat(losses).double().mean().item(), rel=1e-5
    )


def test_third_epoch_of_twelve_is_not_the_last_of_three(tmp_path):
    data = write_lines(tmp_path / "few.jsonl", SAMPLES[:4])
    small = {"validation": "0", "rank": 2, "targets": ("q",)}
    runs = {n: config_of(data, tmp_path / f"run-{n}", epochs=n, **small) for n in (3, 12)}
    for config in runs.values():
        train(config)
    orders = {n: [step["sample_ids"] for step in steps_of(c.out)] for n, c in runs.items()}
    assert orders[12][:6] == orders[3]
    short, long = (adapter_bytes(runs[n].out) for n in (3, 12))
    assert len(long) == 2 * 13
    assert short["init/adapter_model.safetensors"] == long["init/adapter_model.safetensors"]
    assert short["epoch-03/adapter_model.safetensors"] != long["epoch-03/adapter_model.safetensors"]


def test_without_validation_nothing_is_held_out_or_evaluated(data, tmp_path):
    config = config_of(data, tmp_path / "run", validation="0", epochs=1, targets=("q",))
    train(config)
    log = log_of(config.out)
    assert {event["event"] for event in log} == {"step"}
    assert sum(len(event["sample_ids"]) for event in log) == len(SAMPLES)


def test_validation_file_is_evaluated_and_nothing_held_out(data, tmp_path):
    held_out = write_lines(tmp_path / "held-out.jsonl", [{**SAMPLES[0], "id": "other"}])
    plan = make_plan(config_of(data, tmp_path / "run", validation=str(held_out)))
    assert [sample.id for sample in plan.validation] == ["other"]
    assert [sample.id for sample in plan.train] == [sample["id"] for sample in SAMPLES]
    digest = hashlib.sha256(data.read_bytes() + held_out.read_bytes()).hexdigest()
    assert plan.data_digest == digest


def test_validation_share_is_drawn_by_the_seed_and_keeps_the_order_of_the_file(data, tmp_path):
    order = [sample["id"] for sample in SAMPLES]
    draws = set()
    for seed in range(8):
        plan = make_plan(config_of(data, tmp_path / "run", seed=seed))
        held, kept = ([s.id for s in part] for part in (plan.validation, plan.train))
        assert len(held) == 3
        assert sorted(held + kept) == sorted(order)
        assert kept == [name for name in order if name in kept]
        draws.add(tuple(held))
    assert len(draws) > 4


def test_paper_preset_on_105_samples_makes_564_steps_57_of_them_warm_up(tmp_path):
    config = TrainConfig(model=str(MODEL), data=(DEMO / "train.jsonl",), out=tmp_path)
    plan = make_plan(config)
    assert (len(plan.train), len(plan.validation)) == (94, 11)
    assert (plan.steps_per_epoch, plan.total_steps) == (47, 564)
    rates = [plan.learning_rate(step) for step in range(1, 565)]
    assert rates[0] == 0
    assert rates.index(max(rates)) == 57
    assert max(rates) == 2e-4


def test_whole_text_loss_learns_every_token_but_the_first(data, tmp_path):
    plan = make_plan(config_of(data, tmp_path / "run", loss_on="whole-text"))
    assert all(sample.n_labels == len(sample.ids) - 1 for sample in plan.train)


def test_dropped_samples_are_named_in_run_json(data, tmp_path):
    lengths = {s.id: len(s.ids) for s in make_plan(config_of(data, tmp_path)).train}
    longest = max(lengths, key=lambda name: lengths[name])
    limited = {"max_tokens": lengths[longest] - 1, "too_long": "drop"}
    config = config_of(data, tmp_path / "run", epochs=1, targets=("q",), **limited)
    train(config)
    held = json.loads((config.out / "run.json").read_text())
    assert longest in held["too_long_ids"]
    assert held["n_train"] + held["n_validation"] == len(SAMPLES) - len(held["too_long_ids"])


def test_all_samples_held_out_is_refused(tmp_path):
    data = write_lines(tmp_path / "one.jsonl", SAMPLES[:1])
    with pytest.raises(DataError, match="at least one sample to train on"):
        train(config_of(data, tmp_path / "run"))
