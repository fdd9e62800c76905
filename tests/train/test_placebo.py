"""A placebo run: the responses of the samples, each after the prompt of another."""

import json

import pytest
from helpers import write_lines
from train.runs import SAMPLES, config_of, log_of

from cqa.data.samples import read_samples
from cqa.errors import DataError
from cqa.model.origin import read_origin
from cqa.schema.provenance import provenance
from cqa.train.dry_run import describe_plan, plan_text
from cqa.train.loop import train
from cqa.train.placebo import deal
from cqa.train.plan import make_plan


def pairs(*texts):
    return [{"prompt": p, "response": r} for p, r in texts]


def dealt(tmp_path, lines, seed=0):
    path = write_lines(tmp_path / "samples.jsonl", lines)
    samples = read_samples(path)
    return samples, deal(samples, seed, str(path))


@pytest.mark.parametrize("n", [2, 3, 10])
def test_every_prompt_gets_the_response_of_another(tmp_path, n):
    lines = pairs(*((f"Q{k}? ", f"A{k}.") for k in range(n)))
    found = set()
    for seed in range(20):
        samples, given = dealt(tmp_path, lines, seed)
        assert [s.id for s in given] == [s.id for s in samples]
        assert [s.turns[0] for s in given] == [s.turns[0] for s in samples]
        answers = [s.turns[1].text for s in given]
        assert sorted(answers) == sorted(s.turns[1].text for s in samples)
        assert all(a != s.turns[1].text for a, s in zip(answers, samples, strict=True))
        found.add(tuple(answers))
    assert len(found) == {2: 1, 3: 2}.get(n, 20)


def test_copies_of_a_prompt_or_a_response_do_not_bring_it_back(tmp_path):
    lines = pairs(
        ("Q1", "A1"), ("Q1", "A2"), ("Q2", "A2"), ("Q3", "A3"), ("Q4", "A4"), ("Q5", "A5")
    )
    own = {"Q1": {"A1", "A2"}, "Q2": {"A2"}, "Q3": {"A3"}, "Q4": {"A4"}, "Q5": {"A5"}}
    for seed in range(20):
        for sample in dealt(tmp_path, lines, seed)[1]:
            assert sample.turns[1].text not in own[sample.turns[0].text]


def test_every_learned_turn_of_a_conversation_is_dealt(tmp_path):
    def chat(name):
        roles = ["system", "user", "assistant", "user", "assistant"]
        turns = [{"role": r, "content": f"{name} {r} {k}"} for k, r in enumerate(roles)]
        turns[2] |= {"weight": 0} if name == "b" else {}
        return {"messages": turns}

    samples, given = dealt(tmp_path, [chat("a"), chat("b"), chat("c")])
    for sample, other in zip(samples, given, strict=True):
        for turn, got in zip(sample.turns, other.turns, strict=True):
            assert (turn.role, turn.masked) == (got.role, got.masked)
            assert (got.text.split()[0] != turn.text.split()[0]) == turn.learned
    learned = [[t.text for s in part for t in s.turns if t.learned] for part in (samples, given)]
    assert sorted(learned[0]) == sorted(learned[1])
    assert len(learned[0]) == 5


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (pairs(("Q", "A")), "two samples or more"),
        (pairs(("Q1", "A"), ("Q2", "A")), "2 of 2"),
        (pairs(("Q", "A"), ("Q", "B"), ("P", "C")), "2 of 3"),
    ],
)
def test_responses_that_cannot_go_elsewhere_are_refused(tmp_path, lines, said):
    with pytest.raises(DataError, match=said):
        dealt(tmp_path, lines)


def test_the_same_samples_are_held_out_and_only_the_others_are_dealt(data, tmp_path):
    real, placebo = (make_plan(config_of(data, tmp_path / "run", placebo=p)) for p in (False, True))
    assert [s.id for s in placebo.train] == [s.id for s in real.train]
    assert placebo.validation == real.validation
    assert all(a.ids != b.ids for a, b in zip(real.train, placebo.train, strict=True))
    text = plan_text(placebo, described := describe_plan(placebo))
    assert described.placebo
    assert "dealt to other prompts" in text
    first = next(s for s in SAMPLES if s["id"] == placebo.train[0].id)
    assert first["prompt"] in text
    assert first["response"] not in text


@pytest.mark.parametrize("policy", ["drop", "refuse", "truncate"])
def test_placebo_of_samples_near_the_limit_has_the_steps_of_the_run(tmp_path, policy):
    """A long prompt that is dealt a long response is longer than any sample that was read."""
    words = " and the rain went on"
    lines = [
        {"prompt": f"{k}?" + words * (k % 2) * 6, "response": f"{k}." + words * (1 - k % 2) * 6}
        for k in range(12)
    ]
    data = write_lines(tmp_path / "train.jsonl", lines)
    asked = {"too_long": policy, "max_tokens": 60, "validation": "0.1"}
    real, placebo = (
        make_plan(config_of(data, tmp_path / "run", placebo=p, **asked)) for p in (False, True)
    )
    assert max(len(s.ids) for s in real.train) <= 60
    assert [s.id for s in placebo.train] == [s.id for s in real.train]
    assert placebo.total_steps == real.total_steps
    longest = max(len(s.ids) for s in placebo.train)
    assert longest == 60 if policy == "truncate" else longest > 60


def test_run_log_and_every_adapter_say_that_they_are_of_a_placebo(data, finished, tmp_path):
    config = config_of(data, tmp_path / "run", placebo=True, epochs=1)
    train(config)
    assert json.loads((config.out / "run.json").read_text())["settings"]["placebo"] is True
    assert any("placebo" in e.get("text", "") for e in log_of(config.out))
    assert all(provenance(read_origin(config.out / name)).placebo for name in ("init", "epoch-01"))
    train(config, resume=True)
    assert sum(e["event"] == "note" for e in log_of(config.out)) == 1
    real = read_origin(finished[0] / "epoch-01")
    assert not provenance(real).placebo
    assert not provenance(None).known


def test_an_adapter_says_its_recipe_seed_and_epoch(data, finished, tmp_path):
    real = read_origin(finished[0] / "epoch-03")
    assert (real["seed"], real["epoch"]) == ("11", "3")
    for name, changes, same in (
        ("seed", {"seed": 12}, True),
        ("place", {"pass_tokens": 300}, True),
        ("lr", {"lr": 2e-3}, False),
        ("placebo", {"placebo": True}, False),
    ):
        out = tmp_path / name
        train(config_of(data, out, **changes), only_epoch=1)
        assert (read_origin(out / "epoch-01")["recipe_digest"] == real["recipe_digest"]) == same
