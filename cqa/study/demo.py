"""The main job on the embedded model and data: train, score base and every epoch, report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from cqa.assets import DEMO
from cqa.interrupt import continued_by
from cqa.output_folder import filled
from cqa.report.config import ReportConfig
from cqa.report.write import write_report
from cqa.schema.events import ScoreEvent, TrainEvent
from cqa.score.config import ScoreConfig
from cqa.score.run import ScoreResult, score
from cqa.train.config import TrainConfig
from cqa.train.loop import train


def run_demo(
    out: Path,
    epochs: int,
    *,
    on_train: Callable[[TrainEvent], None] = lambda _: None,
    on_score: Callable[[ScoreEvent], None] = lambda _: None,
) -> ScoreResult:
    """Train the paper's recipe for a few epochs; return what scoring comes to.

    Args:
        out: Folder; the run goes to `out/run`, the scores to `out/scores`, and the report to
            `out/report`.
        epochs: Epochs to train.
        on_train: Called with the training events.
        on_score: Called with the scoring events.
    """
    model = str(DEMO / "model")
    run = out / "run"
    again = shlex.join(["cqa-fast", "demo", "--out", str(out), "--epochs", str(epochs)])
    with filled(out, "demo"), continued_by(again):
        train(
            TrainConfig(model=model, data=(DEMO / "train.jsonl",), out=run, epochs=epochs),
            resume=True,
            on_event=on_train,
        )
        result = score(
            ScoreConfig(
                model=model,
                run=(run,),
                pairs=(DEMO / "literary.jsonl", DEMO / "factual.jsonl"),
                continuations=(DEMO / "continuations.jsonl",),
                tokens=True,
                out=out / "scores",
            ),
            on_event=on_score,
        )
    write_report(out / "scores", ReportConfig(run=run, out=out / "report"))
    return result
