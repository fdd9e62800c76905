"""An analysis plan: written before scoring, kept before anything is computed, departures named."""

import hashlib
import json
from dataclasses import replace

import pytest
from helpers import write_lines
from score.scoring import FACTUAL, LITERARY, MODEL

from cqa.errors import ConfigError, DataError
from cqa.report.caveats import caveats
from cqa.report.config import ReportConfig
from cqa.report.write import read_focus
from cqa.score.config import PlanConfig, ScoreConfig
from cqa.score.plan import planned_settings, write_plan
from cqa.score.run import score


@pytest.fixture
def files(tmp_path):
    return tuple(
        write_lines(tmp_path / f"{name}.jsonl", lines[:2])
        for name, lines in (("literary", LITERARY), ("factual", FACTUAL))
    )


def plan_of(files, tmp_path, **changes):
    path = tmp_path / "plan.json"
    settings = {"pairs": files, "epochs": (1, 2), "margin": 0.5, "choose": "last"}
    write_plan(PlanConfig(out=path, **{**settings, **changes}))
    return path


def scored(files, run, plan, out, **changes):
    """Score as the command does: what is not given is taken from the plan."""
    given = {"plan": plan, "run": (run,), "pairs": files, "out": out, "device": "cpu"}
    from cqa.config import resolve

    settings = {**given, **changes}
    config = resolve(ScoreConfig, planned_settings(settings), {"model": str(MODEL), **settings})
    score(config)
    return config


def said(out, words, **settings):
    focus = read_focus(out, ReportConfig(out=out / "report", **settings))
    return [text for text in caveats(focus) if words in text]


def test_a_plan_is_kept_and_kept_to(files, run, tmp_path):
    plan = plan_of(files, tmp_path)
    config = scored(files, run, plan, tmp_path / "out")
    assert (config.margin, config.choose, config.primary) == (0.5, "last", "literary")
    assert (config.control, config.epochs) == ("factual", (1, 2))
    meta = json.loads((config.out / "meta.json").read_text())
    assert meta["plan"]["file_digest"] == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert meta["planned_first"] is True
    assert meta["plan"]["items_digest"] == meta["given_digest"]
    for words in ("Departures", "No plan", "after the fact"):
        assert not said(config.out, words)
    assert said(config.out, "margin of 0.25 nats was given to the report", margin=0.25)
    (text,) = said(config.out, "Departures", margin=0.25, choose="best")
    assert "margin 0.25 instead of 0.5" in text
    assert "choose best instead of last" in text
    score(replace(config, plan=None))
    held = json.loads((config.out / "meta.json").read_text())
    assert (held["plan"], held["planned_first"]) == (meta["plan"], True)


def test_every_departure_is_named(files, run, tmp_path):
    plan = plan_of(files, tmp_path, adapters=("other",), epochs=(2, 3))
    changes = {"epochs": (1, 2), "pairs": files[::-1], "control": None, "boundary": "joint"}
    config = scored(files, run, plan, tmp_path / "out", **changes)
    (text,) = said(config.out, "Departures")
    assert "adapters that were not planned: epoch-01" in text
    assert "planned adapters that were not scored: epoch 3, other" in text
    assert "other items than planned (2 literary, 2 factual)" in text
    assert "boundary joint instead of split" in text


def test_no_plan_and_a_late_plan_are_said(files, run, tmp_path):
    plan = plan_of(files, tmp_path)
    config = scored(
        files, run, None, tmp_path / "out", margin=0.5, choose="last", primary="literary"
    )
    assert said(config.out, "No plan was given")
    scored(files, run, plan, tmp_path / "out")
    assert said(config.out, "scores were there already")
    assert not said(config.out, "Departures")


def test_a_plan_is_written_once_and_names_a_family(files, run, tmp_path):
    plan = plan_of(files, tmp_path)
    with pytest.raises(ConfigError, match="expected a new file"):
        plan_of(files, tmp_path)
    (tmp_path / "link.json").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="expected a new file"):
        write_plan(PlanConfig(pairs=files, epochs=(1,), out=tmp_path / "link.json"))
    with pytest.raises(ConfigError, match="--epochs or --adapters"):
        PlanConfig(pairs=files, out=tmp_path / "none.json")
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "reading": "per token"}))
    with pytest.raises(ConfigError, match="expected reading to be"):
        planned_settings({"plan": plan})
    plan.write_text("[]")
    config = ScoreConfig(model=str(MODEL), pairs=files, plan=plan, out=tmp_path / "out")
    with pytest.raises(DataError):
        score(config)
    assert not (tmp_path / "out").exists()
