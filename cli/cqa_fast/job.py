"""The commands of the job itself: train, score, report, and what comes before and between.

They are thin, without logic; what is heavy is imported inside their bodies.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

from cqa.ranks import launched, require_several
from cqa.report.config import ReportConfig
from cqa.score.config import PlanConfig, ScoreConfig
from cqa.study.config import CallbackTrainConfig, ValidateConfig
from cqa.train.config import PRESETS
from cqa.train.earlier import taken_over
from cqa_fast.options import A_PATH, JSON, command, flag, takes
from cqa_fast.terminal import say, say_json, tell_place


def _planned(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the plan that is named; imported late, for `--help` to be instant."""
    from cqa.score.plan import planned_settings

    return planned_settings(given)


@command()
@flag(
    "--out",
    type=A_PATH,
    default=Path("demo-out"),
    show_default=True,
    help="Folder for the run, the scores and the report.",
)
@flag(
    "--epochs",
    type=click.IntRange(1),
    metavar="N",
    default=3,
    show_default=True,
    help="Epochs to train.",
)
@JSON
def demo(out: Path, epochs: int, as_json: bool) -> None:
    """Train, score and report on the embedded 3.2 M-parameter model and data."""
    from cqa.report.terminal import summary_text
    from cqa.study.demo import run_demo
    from cqa_fast.progress import ScoreProgress, TrainProgress

    with closing(TrainProgress()) as training, closing(ScoreProgress()) as scoring:
        result = run_demo(out, epochs, on_train=training, on_score=scoring)
    tell_place("report", out / "report" / "report.html")
    if as_json:
        say_json(result.to_json())
    elif result.summary is not None:
        say(summary_text(result.summary))


@command()
@click.argument("files", nargs=-1, required=True, type=A_PATH)
@takes(ValidateConfig)
@JSON
def validate(config: ValidateConfig, files: tuple[Path, ...], as_json: bool) -> None:
    """Check training and evaluation FILES: every bad line, imbalance, duplicates, leaks.

    \b
    Example:
      cqa-fast validate train.jsonl literary.jsonl factual.jsonl
      cqa-fast validate pairs.csv --model DIR \\
          --columns context=question,good=right,bad=wrong
    """
    from cqa.data.validate import Encoder, describe_report, report_text, validate_files

    encoder: Encoder | None = None
    if config.model:
        from cqa.study.validate import ModelEncoder

        encoder = ModelEncoder(config.model, config)
    plain = config.template == "plain"
    reports = validate_files(files, columns=config.columns, encoder=encoder, plain=plain)
    say_json([describe_report(r) for r in reports]) if as_json else say(report_text(reports))
    if any(report.errors for report in reports):
        click.get_current_context().exit(3)


@command()
@takes(CallbackTrainConfig, PRESETS, implied=partial(taken_over, CallbackTrainConfig))
@flag(
    "--resume",
    is_flag=True,
    help="Continue the run in --out from its last state; it has all other settings.",
)
@flag(
    "--dry-run",
    is_flag=True,
    help="Show steps, tokens, a sample of every kind, memory, and the time by a step taken here; "
    "write nothing.",
)
@JSON
def train(config: CallbackTrainConfig, resume: bool, dry_run: bool, as_json: bool) -> None:
    """Fine-tune a LoRA; the defaults are the paper's recipe.

    \b
    Example:
      cqa-fast train --model Qwen/Qwen2.5-7B --data train.jsonl --out run
      cqa-fast train --resume --out run
    Several processes, a GPU each, share the samples of every step:
      torchrun --nproc-per-node 2 -m cqa_fast train \\
          --model DIR --data train.jsonl --out run
    """
    rank, count = launched()
    leads = rank == 0
    if dry_run:
        if config.shard_base:
            require_several(count)
        if not leads:
            return
        from cqa.train.dry_run import describe_plan, plan_text
        from cqa.train.plan import make_plan

        plan = make_plan(config)
        described = describe_plan(plan, count if config.shard_base else 1)
        say_json(described.to_json()) if as_json else say(plan_text(plan, described))
        return
    from cqa.study.in_loop_eval import train_with_callbacks
    from cqa_fast.progress import TrainProgress

    with closing(TrainProgress()) as progress:
        result = train_with_callbacks(config, resume=resume, on_event=progress)
    if as_json and leads:
        say_json(result.to_json())


@command()
@takes(PlanConfig)
@JSON
def plan(config: PlanConfig, as_json: bool) -> None:
    """Write down an analysis before anything is scored; score --plan keeps to it.

    \b
    Example:
      cqa-fast plan --pairs literary.jsonl --pairs factual.jsonl \\
          --epochs 2,3,4,5,6,8,12 --out plan.json
      cqa-fast score --plan plan.json --model DIR --run run --out scores \\
          --pairs literary.jsonl --pairs factual.jsonl
    """
    from cqa.score.plan import write_plan

    written = write_plan(config)
    say_json(written.to_json()) if as_json else say(str(config.out))


@command()
@takes(ScoreConfig, implied=_planned)
@JSON
def score(config: ScoreConfig, as_json: bool) -> None:
    """Score pairs and continuations under a base model and its adapters.

    \b
    Example:
      cqa-fast score --model Qwen/Qwen2.5-7B --run run --epochs 2-6,8,12 \\
          --pairs literary.jsonl --pairs factual.jsonl --out scores
    A base larger than a card, spread over the processes of torchrun:
      torchrun --nproc-per-node 2 -m -- cqa_fast score --shard-base \\
          --model DIR --pairs literary.jsonl --out scores
    """
    from cqa.report.terminal import summary_text
    from cqa.score.anywhere import score_anywhere
    from cqa_fast.progress import ScoreProgress

    with closing(ScoreProgress()) as progress:
        result = score_anywhere(config, on_event=progress)
    if result is None:
        return
    if as_json:
        say_json(result.to_json())
    elif result.summary is not None:
        say(summary_text(result.summary))


@command()
@click.argument("out", type=A_PATH)
@click.argument("shards", metavar="SHARD...", nargs=-1, required=True, type=A_PATH)
@JSON
def merge(out: Path, shards: tuple[Path, ...], as_json: bool) -> None:
    """Make one folder OUT of all shards of a job: the bytes of one run, and its statistics.

    Shards that are missing, come twice, are unfinished or of another job are refused.

    \b
    Example:
      cqa-fast score --model DIR --pairs pairs.jsonl --shard 1/2 --out shard-1
      cqa-fast score --model DIR --pairs pairs.jsonl --shard 2/2 --out shard-2
      cqa-fast merge scores shard-1 shard-2
    """
    from cqa.report.terminal import summary_text
    from cqa.score.merge import merge as run_merge
    from cqa.score.prescreen import prescreen_text

    merged = run_merge(out, shards)
    if as_json:
        say_json((merged.points or merged.scores).to_json())
    elif merged.points is not None:
        say(prescreen_text(merged.points))
    elif merged.scores.summary is not None:
        say(summary_text(merged.scores.summary))


@command()
@click.argument("scores", type=A_PATH)
@takes(ReportConfig)
@JSON
def report(config: ReportConfig, scores: Path, as_json: bool) -> None:
    """Write a report on a folder of SCORES: HTML, Markdown, CSV, LaTeX, SVG and PNG.

    No model is loaded and nothing is asked of the network.

    \b
    Example:
      cqa-fast report scores --run run --out report
    """
    from cqa.report.write import write_report

    written = write_report(scores, config)
    if as_json:
        files = list(map(str, written.files))
        say_json({"files": files, "verdict": written.verdict.to_json()})
    else:
        say(str(written.files[0]))
