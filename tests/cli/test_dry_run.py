"""What `train --dry-run` shows: steps, tokens, samples, memory and time."""

import json
import re

import pytest
from cli.common import MODEL, execute, invoke, plan_of
from helpers import DEMO, read_lines, write_lines


def test_dry_run_prints_one_object_and_trains_nothing(samples):
    out = samples.parent / "run"
    paths = ["--model", MODEL, "--data", samples, "--out", out]
    result = execute("train", *paths, "--dry-run", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    plan = json.loads(result.stdout)
    assert (plan["n_train"], plan["n_validation"], plan["total_steps"]) == (5, 1, 36)
    assert not out.exists()


def test_dry_run_estimates_the_memory_part_by_part(samples):
    memory = plan_of(samples)["memory_bytes"]
    parts = {"weights", "adapter", "activations", "workspace"}
    assert memory.keys() == parts | {"total"}
    assert all(memory[part] > 0 for part in parts)
    assert memory["total"] == sum(memory[part] for part in parts)
    weights = (DEMO / "model" / "model.safetensors").stat().st_size
    assert memory["weights"] > weights
    assert plan_of(samples, "--rank", 64)["memory_bytes"]["adapter"] == 2 * memory["adapter"]
    recomputed = plan_of(samples, "--recompute")["memory_bytes"]
    assert recomputed["activations"] < memory["activations"]


def test_dry_run_counts_tokens_of_the_samples(samples):
    plan = plan_of(samples)
    (first,) = plan["examples"]
    assert first["id"] == read_lines(samples)[0]["id"]
    assert len(first["ids"]) == len(first["learned"]) <= plan["longest_sample_tokens"]
    assert plan["longest_sample_tokens"] < plan["longest_pass_tokens"] < plan["tokens_per_epoch"]
    assert 6 < plan["labels_per_epoch"] < plan["tokens_per_epoch"]
    assert plan_of(samples, "--loss-on", "whole-text")["examples"][0]["learned"].count(False) == 0


def test_dry_run_shows_the_learned_part_of_the_first_sample_in_brackets(samples):
    paths = ["--model", MODEL, "--data", samples, "--out", "unused", "--validation", 0]
    result = invoke("train", *paths, "--dry-run")
    first = read_lines(samples)[0]
    shown = f"{first['prompt']}⟦{first['response']}<|endoftext|>⟧\n"
    title = f"`{first['id']}`, prompt of user, assistant (6 of 6 samples):"
    assert result.stdout.endswith(f"{title}\n{shown}")
    assert "6 to train on, 0 held out" in result.stdout
    assert result.stdout.count("⟦") == 1


def test_dry_run_takes_its_time_from_a_step(samples):
    plan = plan_of(samples, "--epochs", 3, validation=0.5)
    rate, tokens = plan["rate"], plan["tokens_per_epoch"]
    assert 0 < rate["step_tokens"] < tokens
    expected = 3 * tokens * rate["step_s"] / rate["step_tokens"] + 4 * rate["eval_s"]
    assert rate["total_s"] == pytest.approx(expected, rel=1e-5)
    assert plan_of(samples)["rate"]["eval_s"] is None
    text = invoke("train", "--model", MODEL, "--data", samples, "--out", "o", "--dry-run").stdout
    (line,) = re.findall(r"^time       .*", text, re.MULTILINE)
    assert re.fullmatch(
        r"time       [\d.]+ (s|min), loading left out: here a step of \d+ tokens took [\d.]+ s "
        r"\([\d,]+ tokens/s\), the held-out samples [\d.]+ s",
        line,
    )


def test_dry_run_says_where_memory_holds_no_step(samples, monkeypatch):
    monkeypatch.setattr("cqa.train.memory.free_bytes", lambda _: 1000)
    paths = ["--model", MODEL, "--data", samples, "--out", "o"]
    assert "time       not measured: memory does not" in invoke("train", *paths, "--dry-run").stdout
    assert plan_of(samples)["rate"] is None


def test_dry_run_of_a_base_to_be_spread_estimates_one_process(samples, monkeypatch):
    whole = plan_of(samples)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    spread = plan_of(samples, "--shard-base")
    assert (whole["n_ranks"], spread["n_ranks"]) == (1, 4)
    assert spread["rate"] is None
    assert 0.25 < spread["memory_bytes"]["weights"] / whole["memory_bytes"]["weights"] < 0.8
    paths = ["--model", MODEL, "--data", samples, "--out", "unused"]
    shown = invoke("train", *paths, "--dry-run", "--shard-base").stdout
    assert "the base spread over 4 processes" in shown
    assert "not measured: a step would be of all processes" in shown
    monkeypatch.delenv("RANK")
    refused = invoke("train", *paths, "--dry-run", "--shard-base")
    assert refused.exit_code == 2
    assert "expected several processes with --shard-base, got one" in refused.stderr


def test_dry_run_shows_a_sample_of_every_pattern_of_turns(tmp_path):
    def chat(*roles: str, **more: object) -> dict:
        turns = [{"role": role, "content": f"{role} {k}"} for k, role in enumerate(roles)]
        turns[-1] |= more
        return {"messages": turns}

    one, two = ("user", "assistant"), ("user", "assistant") * 2
    data = write_lines(
        tmp_path / "chats.jsonl",
        [
            chat(*one), chat(*one), chat(*two), chat(*two, *one), chat("system", *one),
            chat(*two, weight=0), chat("user", *one),
        ],
    )  # fmt: skip
    held = write_lines(tmp_path / "held.jsonl", [{"instruction": "Why?", "output": "So."}])
    paths = ["--model", MODEL, "--data", data, "--out", tmp_path / "o", "--validation", held]
    text = invoke("train", *paths, "--dry-run").stdout
    assert re.findall(r"^`.*:$", text, re.MULTILINE) == [
        "`line-1`, messages of user, assistant (2 of 8 samples):",
        "`line-3`, messages of user, assistant, user, assistant (2 of 8 samples):",
        "`line-5`, messages of system, user, assistant (1 of 8 samples):",
        "`line-6`, messages of user, assistant, user, assistant (not learned) (1 of 8 samples):",
        "`line-7`, messages of user, user, assistant (1 of 8 samples):",
        "`line-1`, alpaca of user, assistant (1 of 8 samples):",
    ]
    assert text.count("⟦") == 7  # a run of each learned answer
