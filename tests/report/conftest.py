"""One report for all tests that look at it."""

from pathlib import Path

import pytest
from synthetic import make_folder, make_run

from cqa.report.config import ReportConfig
from cqa.report.write import write_report


@pytest.fixture(scope="session")
def reported(tmp_path_factory) -> Path:
    """A folder with scores of three epochs, their training run, and a report on them in `out`."""
    folder = tmp_path_factory.mktemp("reported")
    run = make_run(folder / "run")
    make_folder(folder / "scores")
    write_report(folder / "scores", ReportConfig(out=folder / "out", run=run, cutoff="2024-06"))
    return folder
