"""A comparison as a section of the report: what it holds, and what is refused."""

import json
from pathlib import Path

import pytest
from synthetic import base_folder, make_items

from cqa.compare.config import CompareConfig
from cqa.compare.run import compare
from cqa.errors import ConfigError, DataError, ModelError
from cqa.report.config import ReportConfig
from cqa.report.write import write_report
from cqa.schema.compared import Comparison

HOSTILE = '<script>alert(1)</script> & "x" | `y` $z$'


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("compared")
    items = [{**item, "group": HOSTILE} for item in make_items(12)]
    names = ("own", "other <b>")
    return [base_folder(root / n, items, gain=2.0 * k) for k, n in enumerate(names)]


@pytest.fixture(scope="module")
def comparison(folders) -> Path:
    out = folders[0].parent / "comparison"
    compare(folders, CompareConfig(out=out))
    return out


def test_a_comparison_is_a_section_with_its_controls_and_what_each_model_gives(
    folders, comparison, tmp_path
):
    out = tmp_path / "report"
    written = write_report(folders[0], ReportConfig(out=out, compare=comparison))
    names = {path.relative_to(out).as_posix() for path in written.files}
    tables = ("systems", "rankings", "contrasts", "agreements")
    assert {f"tables/compare_{name}.csv" for name in tables} <= names
    assert "figures/compare_rank_prob.svg" in names
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert '<h2 id="comparison">Beside other models</h2>' in page
    section = page.partition('id="comparison"')[2].partition("</section>")[0]
    for name in tables:
        assert f'id="table-compare_{name}"' in section
    assert "permuted" in section  # the null control
    assert "same bits in any batch" in section  # what each model gives
    assert "this report&#39;s base: own, other &lt;b&gt;." in section
    assert "Drawn are" not in section
    assert "<script>alert" not in page
    assert "other <b>" not in page
    assert page.index('id="comparison"') < page.index('id="items"')
    assert "## Beside other models" in text
    assert "<script>alert" not in text
    for name in tables:
        own = (comparison / "tables" / f"{name}.csv").read_bytes()
        assert (out / "tables" / f"compare_{name}.csv").read_bytes() == own


def changed(comparison: Path, folder: Path, change) -> Path:
    """Write a comparison in which something is changed."""
    folder.mkdir()
    held = json.loads((comparison / "compare.json").read_text())
    change(held)
    (folder / "compare.json").write_text(json.dumps(held))
    return folder


def test_what_was_written_is_read_again(comparison):
    path = comparison / "compare.json"
    held = json.loads(path.read_text())
    assert json.loads(json.dumps(Comparison.from_json(held, str(path)).to_json())) == held


def other_base(held: dict) -> None:
    for system in held["systems"]:
        system["model_digest"] = "0" * 64


def test_a_comparison_of_other_models_is_refused(folders, comparison, tmp_path):
    folder = changed(comparison, tmp_path / "c", other_base)
    with pytest.raises(ModelError, match="with the base model that was scored, got one of others"):
        write_report(folders[0], ReportConfig(out=tmp_path / "report", compare=folder))
    assert not (tmp_path / "report").exists()


def without_systems(held: dict) -> None:
    held["groups"][HOSTILE]["systems"] = []


def unknown_reading(held: dict) -> None:
    rankings = held["groups"][HOSTILE]["systems"][0]["rankings"]
    rankings["mine"] = rankings["sum"]


def of_text(held: dict) -> None:
    held["groups"][HOSTILE]["systems"][0]["rankings"]["sum"]["accuracy"] = "all"


def of_one(held: dict) -> None:
    held["systems"] = held["systems"][:1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_systems, "expected results of every model in group"),
        (unknown_reading, "expected readings of sum, byte, pmi, letter in group"),
        (of_text, "accuracy` to be a finite number, got: 'all'"),
        (of_one, "two models or more, the reference among them"),
    ],
)
def test_a_damaged_comparison_is_refused(folders, comparison, tmp_path, change, said):
    folder = changed(comparison, tmp_path / "c", change)
    with pytest.raises(DataError, match=said) as caught:
        write_report(folders[0], ReportConfig(out=tmp_path / "report", compare=folder))
    assert caught.value.where == str(folder / "compare.json")
    assert not (tmp_path / "report").exists()


def test_what_is_no_comparison_is_refused(folders, comparison, tmp_path):
    for given in (folders[1], tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"compare wrote, got one without compare\.json"):
            write_report(folders[0], ReportConfig(out=tmp_path / "report", compare=given))
    with pytest.raises(ConfigError, match="expected --out to hold no input"):
        write_report(folders[0], ReportConfig(out=comparison, compare=comparison))


@pytest.mark.parametrize("given", [{"compare": Path("none")}, {"study": (Path("none"),)}])
def test_what_is_not_there_is_told_before_anything_is_drawn(folders, tmp_path, monkeypatch, given):
    def drawn(_: object) -> None:
        pytest.fail("drawn before it was refused")

    monkeypatch.setattr("cqa.report.write.figure_rows", drawn)
    with pytest.raises(DataError, match="none: expected a folder"):
        write_report(folders[0], ReportConfig(out=tmp_path / "report", **given))
    assert not (tmp_path / "report").exists()
