"""The commands: thin, no logic; what is heavy is imported inside their bodies."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

from cqa import __version__
from cqa.bench.config import BenchConfig
from cqa.bridges.config import LmEvalConfig
from cqa.report.config import ReportConfig
from cqa.score.config import PlanConfig, PrescreenConfig, ScoreConfig
from cqa.study.config import CallbackTrainConfig, PowerConfig, ScaleConfig, ValidateConfig
from cqa.train.config import PRESETS
from cqa.train.earlier import taken_over
from cqa_fast.group import ErrorsAsMessages, require_working_directory
from cqa_fast.options import A_PATH, flag, takes
from cqa_fast.terminal import open_missing_streams, say, say_json, tell

# How long a thread waits for the others at full load before it sleeps. With OpenMP's own number,
# fifty times this, two jobs on the same cores hold each other up.
_SPINS = "6000"
_JSON = flag("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def _planned(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the plan that is named; imported late, for `--help` to be instant."""
    from cqa.score.plan import planned_settings

    return planned_settings(given)


@click.group(
    cls=ErrorsAsMessages,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="cqa-fast")
def main() -> None:
    """Fine-tune a LoRA on about 100 expert samples, and score texts by log-probability.

    \b
    Try it on the embedded model and data:
      cqa-fast demo
    With your own:
      cqa-fast train --model DIR --data train.jsonl --out run
      cqa-fast score --model DIR --run run --out scores \\
          --pairs literary.jsonl --pairs factual.jsonl
      cqa-fast report scores --run run --out report

    Results go to standard output, progress to standard error.

    \b
    Exit codes:
      0 done      3 data   5 not finite  129, 130, 143 ended by a signal
      2 settings  4 model  6 resources   (SIGHUP, SIGINT, SIGTERM)
    """
    open_missing_streams()
    require_working_directory()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a text that the terminal lacks is no error
        sys.stdout.reconfigure(errors="backslashreplace")


@main.command()
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
@_JSON
def demo(out: Path, epochs: int, as_json: bool) -> None:
    """Train, score and report on the embedded 3.2 M-parameter model and data."""
    from cqa.report.terminal import summary_text
    from cqa.study.demo import run_demo
    from cqa_fast.progress import ScoreProgress, TrainProgress

    with closing(TrainProgress()) as training, closing(ScoreProgress()) as scoring:
        result = run_demo(out, epochs, on_train=training, on_score=scoring)
    tell(f"report: {out / 'report' / 'report.html'}")
    if as_json:
        say_json(result.to_json())
    elif result.summary is not None:
        say(summary_text(result.summary))


@main.command()
@click.argument("files", nargs=-1, required=True, type=A_PATH)
@takes(ValidateConfig)
@_JSON
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


@main.command()
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
@_JSON
def train(config: CallbackTrainConfig, resume: bool, dry_run: bool, as_json: bool) -> None:
    """Fine-tune a LoRA; the defaults are the paper's recipe.

    \b
    Example:
      cqa-fast train --model Qwen/Qwen2.5-7B --data train.jsonl --out run
      cqa-fast train --resume --out run
    """
    if dry_run:
        from cqa.train.dry_run import describe_plan, plan_text
        from cqa.train.plan import make_plan

        plan = make_plan(config)
        described = describe_plan(plan)
        say_json(described.to_json()) if as_json else say(plan_text(plan, described))
        return
    from cqa.study.in_loop_eval import train_with_callbacks
    from cqa_fast.progress import TrainProgress

    with closing(TrainProgress()) as progress:
        result = train_with_callbacks(config, resume=resume, on_event=progress)
    if as_json:
        say_json(result.to_json())


@main.command()
@takes(PlanConfig)
@_JSON
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


@main.command()
@takes(ScoreConfig, implied=_planned)
@_JSON
def score(config: ScoreConfig, as_json: bool) -> None:
    """Score pairs and continuations under a base model and its adapters.

    \b
    Example:
      cqa-fast score --model Qwen/Qwen2.5-7B --run run --epochs 2-6,8,12 \\
          --pairs literary.jsonl --pairs factual.jsonl --out scores
    """
    from cqa.report.terminal import summary_text
    from cqa.score.run import score as run_scoring
    from cqa_fast.progress import ScoreProgress

    with closing(ScoreProgress()) as progress:
        result = run_scoring(config, on_event=progress)
    if as_json:
        say_json(result.to_json())
    elif result.summary is not None:
        say(summary_text(result.summary))


@main.command()
@click.argument("out", type=A_PATH)
@click.argument("shards", metavar="SHARD...", nargs=-1, required=True, type=A_PATH)
@_JSON
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


@main.command()
@click.argument("scores", type=A_PATH)
@takes(ReportConfig)
@_JSON
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


@main.command("lm-eval")
@takes(LmEvalConfig)
@_JSON
def lm_eval(config: LmEvalConfig, as_json: bool) -> None:
    """Evaluate tasks of lm-eval, those that compare or score given texts.

    \b
    Example:
      cqa-fast lm-eval --model Qwen/Qwen2.5-7B --adapter run/epoch-05 \\
          --tasks arc_easy,piqa,hellaswag
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    from cqa.bridges.lm_eval_run import evaluate, results_text

    results = evaluate(config)
    say_json(results) if as_json else say(results_text(results))


@main.command()
@click.argument("scores", required=False, type=A_PATH)
@takes(PowerConfig)
@_JSON
def power(config: PowerConfig, scores: Path | None, as_json: bool) -> None:
    """Say how many items a study needs, by simulation, before they are collected.

    \b
    Example:
      cqa-fast power --effect 0.5 --sd 1.5 --icc 0.1 \\
          --items-per-source 4 --epochs-swept 7
      cqa-fast power pilot-scores --effect 0.5
    """
    from cqa.study.power import plan_power, power_text

    result = plan_power(config, scores, on_part=lambda name: tell(f"simulating {name}"))
    say_json(result.to_json()) if as_json else say(power_text(result))


@main.command()
@takes(PrescreenConfig)
@_JSON
def prescreen(config: PrescreenConfig, as_json: bool) -> None:
    """Rank decision points by what a base model has yet to learn about them.

    \b
    Example:
      cqa-fast prescreen --model Qwen/Qwen2.5-7B --pairs points.jsonl \\
          --budget 100 --out points
    """
    from cqa.score.prescreen import RANKED, SELECTED, prescreen_text
    from cqa.score.prescreen import prescreen as run_prescreen
    from cqa_fast.progress import ScoreProgress

    with closing(ScoreProgress()) as progress:
        summary = run_prescreen(config, on_event=progress)
    if summary is None:
        return
    tell(f"points: {config.out / RANKED}" + (f", {config.out / SELECTED}" if config.budget else ""))
    say_json(summary.to_json()) if as_json else say(prescreen_text(summary))


@main.command()
@takes(ScaleConfig, PRESETS, implied=partial(taken_over, ScaleConfig))
@_JSON
def scale(config: ScaleConfig, as_json: bool) -> None:
    """Train on nested subsets of several sizes and seeds, and show how the effect grows.

    \b
    Example:
      cqa-fast scale --model Qwen/Qwen2.5-7B --data train.jsonl \\
          --pairs literary.jsonl --out scale
    """
    from cqa.study.scale import CURVE, scale_text
    from cqa.study.scale import scale as run_scale
    from cqa_fast.progress import ScaleProgress, ScoreProgress

    with closing(ScaleProgress()) as training, closing(ScoreProgress()) as scoring:
        result = run_scale(config, on_train=training, on_score=scoring)
    tell(f"curve: {config.out / CURVE}")
    say_json(result.to_json()) if as_json else say(scale_text(result))


@main.command()
@click.argument("files", nargs=-1, required=True, type=A_PATH)
@flag(
    "--by",
    type=click.Choice(["auto", "tags", "words"]),
    default="auto",
    show_default=True,
    help="The samples' own `tags`, or English word lists; auto takes tags where there are some.",
)
@flag(
    "--gold",
    type=A_PATH,
    help="Samples tagged by hand, to measure the word lists on instead of the 60 embedded ones.",
)
@_JSON
def coverage(files: tuple[Path, ...], by: Any, gold: Path | None, as_json: bool) -> None:
    """Count which kinds of knowledge the samples of training FILES touch; filter nothing.

    \b
    Example:
      cqa-fast coverage train.jsonl alpaca.jsonl
    """
    from cqa.coverage.counts import GOLD, cover, coverage_text

    result = cover(files, by=by, gold=gold or GOLD)
    say_json(result.to_json()) if as_json else say(coverage_text(result))


@main.command()
@click.argument("adapter", type=A_PATH)
@flag("--out", required=True, type=A_PATH, help="New folder to write.")
@flag(
    "--plain-alpha",
    is_flag=True,
    help="As an adapter whose alpha / r is its scaling, for servers that ignore use_rslora.",
)
@flag("--merge", is_flag=True, help="Merged into its base: a whole model folder, with tokenizer.")
@flag("--model", help="The base to merge into; by default the one that the adapter names.")
@_JSON
def export(
    adapter: Path, out: Path, plain_alpha: bool, merge: bool, model: str | None, as_json: bool
) -> None:
    """Write an ADAPTER for other programs, read it back and compare.

    \b
    Examples:
      cqa-fast export run/epoch-05 --out adapter-for-sglang --plain-alpha
      cqa-fast export run/epoch-05 --out merged --merge
    """
    from cqa.model.export import export as run_export

    exported = run_export(adapter, out, plain_alpha=plain_alpha, merge=merge, model=model)
    as_dict = {"out": str(exported.out), "n_modules": exported.n_modules, "base": exported.base}
    say_json(as_dict) if as_json else say(str(exported.out))


@main.command()
@click.argument("file", type=A_PATH)
@click.argument("folder", type=A_PATH)
@flag(
    "--dtype",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="What weights are written in: fp32 holds all that the file says, bf16 half the bytes.",
)
@_JSON
def convert(file: Path, folder: Path, dtype: Any, as_json: bool) -> None:
    """Write the model of a GGUF FILE as a new model FOLDER, tokenizer included.

    \b
    Example:
      cqa-fast convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2
      cqa-fast score --model smollm2 --pairs literary.jsonl --out scores
    """
    from cqa.convert.run import convert as run_convert

    converted = run_convert(file, folder, dtype=dtype)
    as_dict = {"out": str(converted.out), "n_tensors": converted.n_tensors}
    say_json(as_dict | converted.conversion) if as_json else say(str(converted.out))


@main.command()
@takes(BenchConfig)
@_JSON
def bench(config: BenchConfig, as_json: bool) -> None:
    """Measure this device: ops, training steps and scoring, against what it can do at best.

    Weights are random and drawn on the device, in the sizes of --shape; nothing is downloaded.

    \b
    Example:
      cqa-fast bench --shape qwen2.5-7b --peers --out bench.json
    """
    from cqa.bench.run import bench as run_bench
    from cqa.bench.table import bench_text
    from cqa_fast.progress import BenchProgress

    with closing(BenchProgress()) as progress:
        data = run_bench(config, on_event=progress)
    say_json(data) if as_json else say(bench_text(data))


@main.command()
@_JSON
def doctor(as_json: bool) -> None:
    """Show versions, devices, memory and disk, and what could be better."""
    from cqa.doctor import examine, report_text

    found = examine(Path.cwd())
    say_json(found.to_json()) if as_json else say(report_text(found))
