"""The report's figures: drawn from their CSV files, which hold the scores' numbers."""

import pytest
from report.common import rows_of

from cqa.report.figure_rows import ItemPoint, rows_from_csv, rows_to_csv
from cqa.report.figures import FIGURES


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_redrawn_from_its_csv_alone(made, name):
    file = made / "figures" / name
    drawing = FIGURES[name].redraw(file.with_suffix(".csv").read_text(encoding="utf-8"))
    assert drawing.svg == file.with_suffix(".svg").read_text(encoding="utf-8")
    assert drawing.png == file.with_suffix(".png").read_bytes()


def test_a_figure_shows_what_its_csv_says(made):
    text = (made / "figures" / "d_by_epoch.csv").read_text(encoding="utf-8")
    (first, *_) = rows_of(made / "figures" / "d_by_epoch.csv")
    moved = FIGURES["d_by_epoch"].redraw(text.replace(first["d_z"], "0.987"))
    assert moved.svg != (made / "figures" / "d_by_epoch.svg").read_text(encoding="utf-8")


def test_figure_1_has_a_line_per_group_and_an_interval_per_epoch(made, summary):
    rows = rows_of(made / "figures" / "d_by_epoch.csv")
    assert {r["epoch"] for r in rows} == {"2", "4", "5"}
    for row in rows:
        entry = summary["groups"][row["group"]][row["adapter"]]
        assert float(row["d_z"]) == entry["d_z"]
        assert [float(row["low"]), float(row["high"])] == entry["d_z_ci95"]
    assert {r["adapter"] for r in rows if r["shown"] == "True"} == {
        summary["selection"]["literary"]["chosen"]
    }


def test_overfitting_view_joins_the_log_of_training_with_the_scores(made):
    rows = rows_of(made / "figures" / "overfitting.csv")
    losses = {r["epoch"]: float(r["value"]) for r in rows if r["quantity"] == "eval_loss"}
    assert losses == {str(k): pytest.approx(2.7 + 0.3 * k) for k in range(1, 7)}
    assert {r["quantity"] for r in rows} == {
        "train_loss", "eval_loss", "mean_ddi", "sd_ddi", "d_z"
    }  # fmt: skip


def test_a_figure_is_drawn_of_an_id_of_any_length():
    point = ItemPoint("literary", "epoch-01", "x" * 200_000 + ",\r\n", 0.5)
    assert rows_from_csv(ItemPoint, rows_to_csv([point])) == [point]
