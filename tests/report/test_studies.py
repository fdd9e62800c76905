"""A study as a section of the report: what it says, what it draws, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cqa.claims.effects import Measured, effects, findings
from cqa.errors import ConfigError, DataError, ModelError
from cqa.report.config import ReportConfig
from cqa.report.write import write_report
from cqa.schema.claims import StudyResult
from cqa.schema.meta import Meta

HOSTILE = '<script>alert(1)</script> & "x" | `y` $z$'


@pytest.fixture
def studied(few, tmp_path):
    meta = Meta.from_json(json.loads((few / "meta.json").read_text()), "meta.json")
    values = {None: np.arange(12.0) - 2, "epoch-01": np.arange(12.0) + 3}
    sources = [f"s{k}" for k in range(12)]
    measured = [
        Measured("excess", f"matched − mismatched {HOSTILE}", "excess", values),
        Measured("null", "mismatched", "null", {a: -v for a, v in values.items()}),
    ]
    found = effects(measured, ["a"] * 12, sources)
    result = StudyResult(
        study="conditioning", claim=f"A claim {HOSTILE}", null_control="another item's",
        caution="It cannot show that.", n_items=12, n_tokens=100, effects=tuple(found),
        findings=tuple(findings("found", found, "excess")), notes=(),
    )  # fmt: skip

    def write(**changes) -> Path:
        folder = tmp_path / "study"
        folder.mkdir(exist_ok=True)
        base = replace(meta.models[0], **changes)
        held = replace(result, models=(base,)).to_json()
        (folder / "study.json").write_text(json.dumps(held))
        return folder

    return write


def test_a_study_is_a_section_with_its_null_control(few, studied, tmp_path):
    out = tmp_path / "report"
    written = write_report(few, ReportConfig(out=out, study=(studied(),)))
    names = {path.relative_to(out).as_posix() for path in written.files}
    assert {"tables/study_conditioning.csv", "figures/study_conditioning.svg"} <= names
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert '<h2 id="study_conditioning">Study: conditioning</h2>' in page
    for part in ("another item's", "It cannot show that."):
        assert part.replace("'", "&#39;") in page
        assert part in text
    assert "<script>alert" not in page
    assert page.count('<span class="mark shown">') == 2  # base and adapter
    rows = (out / "tables" / "study_conditioning.csv").read_text().splitlines()
    assert len(rows) == 1 + 4
    assert page.index('id="study_conditioning"') < page.index('id="items"')


@pytest.mark.parametrize("changed", ["model", "tokenizer"])
def test_a_study_of_another_base_is_refused(few, studied, tmp_path, changed):
    folder = studied(**{changed: "0" * 64})
    with pytest.raises(ModelError, match="that was scored, got one of another"):
        write_report(few, ReportConfig(out=tmp_path / "report", study=(folder,)))


def test_other_settings_are_told(few, studied, tmp_path):
    out = tmp_path / "report"
    write_report(few, ReportConfig(out=out, study=(studied(dtype="bf16"),)))
    assert "Asked with another dtype than the scores" in (out / "report.md").read_text()


@pytest.mark.parametrize("change", [{"study": "../../mine"}, {"study": ""}, {"models": []}])
def test_a_result_that_no_study_wrote_is_refused(few, studied, tmp_path, change):
    """Files of the report are called by the study's name, and a base says what it is of."""
    path = studied() / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match="expected a study's name, and its base before"):
        write_report(few, ReportConfig(out=tmp_path / "report", study=(path.parent,)))
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("damaged", ['{"study": ', '{"study": "fit"}', '{"study": 3}'])
def test_a_damaged_result_is_written_again_by_its_command(few, studied, tmp_path, damaged):
    path = studied() / "study.json"
    path.write_text(damaged)
    with pytest.raises(DataError, match=r"study\.json") as error:
        write_report(few, ReportConfig(out=tmp_path / "report", study=(path.parent,)))
    assert error.value.hint == "the command that wrote it writes it again"


def test_what_is_no_study_is_refused(few, studied, tmp_path):
    for given, said in (((few,), "got one without study.json"), ((studied(),) * 2, "again")):
        with pytest.raises(DataError, match=said):
            write_report(few, ReportConfig(out=tmp_path / "report", study=given))
    with pytest.raises(ConfigError, match="expected --out to hold no input"):
        write_report(few, ReportConfig(out=tmp_path, study=(studied(),)))
