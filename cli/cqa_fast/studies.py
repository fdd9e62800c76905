"""The commands of further studies.

They are thin, without logic; what is heavy is imported inside their bodies.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import click

from cqa.bridges.config import LmEvalConfig
from cqa.compare.config import CompareConfig
from cqa.generate.config import GenerateConfig
from cqa.letters.config import LettersConfig
from cqa.score.config import PrescreenConfig
from cqa.study.config import PowerConfig, ScaleConfig
from cqa.text import counted
from cqa.train.config import PRESETS
from cqa.train.earlier import taken_over
from cqa_fast.options import A_PATH, JSON, command, flag, takes
from cqa_fast.terminal import message, say, say_json, tell, tell_place


@command("lm-eval")
@takes(LmEvalConfig)
@JSON
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


@command()
@takes(GenerateConfig)
@JSON
def generate(config: GenerateConfig, as_json: bool) -> None:
    """Draw texts after prompts, under a base or an adapter, with each token's log-probability.

    \b
    Examples:
      cqa-fast generate --model Qwen/Qwen2.5-7B --adapter run/epoch-05 \\
          --prompt "She read the letter twice." --max-tokens 60
      cqa-fast generate --model Qwen/Qwen2.5-7B --prompts literary.jsonl \\
          --samples 8 --temperature 0.8 --top-p 0.95 --out texts.jsonl
    """
    from cqa.generate.run import as_one_object, texts_of
    from cqa.generate.run import generate as run_generate

    rows = run_generate(config)
    if config.out is not None:
        tell_place("texts", config.out)
    say_json(as_one_object(config, rows)) if as_json else say(texts_of(rows))


@command()
@click.argument("scores", required=False, type=A_PATH)
@takes(PowerConfig)
@JSON
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


@command()
@takes(LettersConfig)
@JSON
def letters(config: LettersConfig, as_json: bool) -> None:
    """Ask a chat server for the letter of the better option; for servers that score no prompts.

    Every option stands once under every letter. compare takes the folder.

    \b
    Example:
      cqa-fast letters --server https://api.example.com --served-model NAME \\
          --pairs literary.jsonl --out letters
    """
    from cqa.letters.run import choose_letters, letters_text
    from cqa.score_folder import LETTERS

    meta = choose_letters(
        config,
        on_rows=lambda n: tell(f"{counted(n, 'item')} asked"),
        on_wait=lambda text: tell(f"note: {message(text)}"),
    )
    tell_place("choices", config.out / LETTERS)
    say_json(meta.to_json()) if as_json else say(letters_text(meta))


@command()
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...", type=A_PATH)
@takes(CompareConfig)
@JSON
def compare(config: CompareConfig, folders: tuple[Path, ...], as_json: bool) -> None:
    """Compare models, in FOLDERs of scores, on the items that they have in common.

    Bases, adapters, engines and servers may differ, and so may their tokenizers.

    \b
    Example:
      cqa-fast compare scores-qwen scores-llama --models base --out comparison
    """
    from cqa.compare.run import compare as run_compare
    from cqa.report.compared_tables import compare_text

    result = run_compare(folders, config)
    tell_place("comparison", config.out / "compare.md")
    say_json(result.to_json()) if as_json else say(compare_text(result))


@command()
@takes(PrescreenConfig)
@JSON
def prescreen(config: PrescreenConfig, as_json: bool) -> None:
    """Rank decision points by what a base model has yet to learn about them.

    \b
    Example:
      cqa-fast prescreen --model Qwen/Qwen2.5-7B --pairs points.jsonl \\
          --budget 100 --out points
    """
    from cqa.score.on_ray import prescreen_anywhere
    from cqa.score.prescreen import RANKED, SELECTED, prescreen_text
    from cqa_fast.progress import ScoreProgress

    with closing(ScoreProgress()) as progress:
        summary = prescreen_anywhere(config, on_event=progress)
    if summary is None:
        return
    names = (RANKED, SELECTED) if config.budget else (RANKED,)
    tell_place("points", *(config.out / name for name in names))
    say_json(summary.to_json()) if as_json else say(prescreen_text(summary))


@command()
@takes(ScaleConfig, PRESETS, implied=partial(taken_over, ScaleConfig))
@JSON
def scale(config: ScaleConfig, as_json: bool) -> None:
    """Train on nested subsets of several sizes and seeds, and show how the effect grows.

    Several processes with the same --out share the runs; the same command continues a study.

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
    tell_place("curve", config.out / CURVE)
    say_json(result.to_json()) if as_json else say(scale_text(result))


@command()
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
@JSON
def coverage(files: tuple[Path, ...], by: Any, gold: Path | None, as_json: bool) -> None:
    """Count which kinds of knowledge the samples of training FILES touch; filter nothing.

    \b
    Example:
      cqa-fast coverage train.jsonl alpaca.jsonl
    """
    from cqa.coverage.counts import GOLD, cover, coverage_text

    result = cover(files, by=by, gold=gold or GOLD)
    say_json(result.to_json()) if as_json else say(coverage_text(result))
