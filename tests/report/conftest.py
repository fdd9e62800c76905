"""Reports, and scores to report on, for all tests that look at them."""

from pathlib import Path

import pytest
from synthetic import make_folder, make_items, make_run

from cqa.report.config import ReportConfig
from cqa.report.write import write_report
from cqa.score_folder import read_rows
from cqa.stats.config import AnalysisConfig
from cqa.stats.summary import Scores, summarise


@pytest.fixture(scope="session")
def reported(tmp_path_factory) -> Path:
    """A folder with scores of three epochs, their training run, and a report on them in `out`."""
    folder = tmp_path_factory.mktemp("reported")
    run = make_run(folder / "run")
    make_folder(folder / "scores")
    write_report(folder / "scores", ReportConfig(out=folder / "out", run=run, cutoff="2024-06"))
    return folder


@pytest.fixture(scope="module")
def scored(reported) -> Path:
    return reported / "scores"


@pytest.fixture(scope="module")
def made(reported) -> Path:
    return reported / "out"


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Continuations under the base alone: no figure, so a report on them is quick."""
    items = [item for item in make_items(2) if item["kind"] == "continuation"]
    return make_folder(tmp_path_factory.mktemp("few"), items=items, adapters=[None], tokens=False)


@pytest.fixture(scope="module")
def summary(scored) -> dict:
    scores = Scores(read_rows(scored / "scores.jsonl"))
    return summarise(scores, AnalysisConfig(cutoff="2024-06")).to_json()
