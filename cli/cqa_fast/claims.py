"""The command `study`: a subcommand for each of the paper's other claims."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import click

from cqa.claims.attention.config import AttentionConfig
from cqa.claims.conditioning.config import ConditioningConfig
from cqa.claims.config import ModelsConfig
from cqa.claims.duality.config import DualityConfig
from cqa.claims.fit.config import FitConfig
from cqa.claims.probe.config import ProbeConfig
from cqa.claims.rubric.config import RubricConfig
from cqa.claims.verdict.config import VerdictConfig
from cqa_fast.group import Commands
from cqa_fast.options import JSON, command, takes
from cqa_fast.terminal import say, say_json, tell_place


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def study(ctx: click.Context) -> None:
    """Ask of another claim of the paper whether it holds, beside its null control."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _run(claim: Any, config: ModelsConfig, as_json: bool) -> None:
    from cqa.claims.family import RESULT
    from cqa.claims.run import run_study
    from cqa.claims.show import study_text
    from cqa_fast.progress import ScoreProgress

    with closing(ScoreProgress()) as progress:
        result = run_study(claim, config, on_event=progress)
    tell_place("study", config.out / RESULT)
    say_json(result.to_json()) if as_json else say(study_text(result))


@command()
@takes(AttentionConfig)
@JSON
def attention(config: AttentionConfig, as_json: bool) -> None:
    """Is the attention of the good option on its own context more than on another's?

    \b
    Example:
      cqa-fast study attention --model Qwen/Qwen2.5-7B --run run \\
          --pairs pairs.jsonl --out attention
    """
    from cqa.claims.attention.claim import Attention

    _run(Attention(config), config, as_json)


@command()
@takes(ConditioningConfig)
@JSON
def conditioning(config: ConditioningConfig, as_json: bool) -> None:
    """Does a condition before the context make the good option more certain?

    \b
    Example:
      cqa-fast study conditioning --model Qwen/Qwen2.5-7B --run run \\
          --pairs conditions.jsonl --out conditioning
    """
    from cqa.claims.conditioning.claim import Conditioning

    _run(Conditioning(config), config, as_json)


@command()
@takes(DualityConfig)
@JSON
def duality(config: DualityConfig, as_json: bool) -> None:
    """Is reading a text writing it: PMI both ways, draws against scores, P(good) with ddI?

    \b
    Example:
      cqa-fast study duality --model Qwen/Qwen2.5-7B --run run \\
          --pairs pairs.jsonl --out duality
    """
    from cqa.claims.duality.claim import Duality

    _run(Duality(config), config, as_json)


@command()
@takes(FitConfig)
@JSON
def fit(config: FitConfig, as_json: bool) -> None:
    """Do works fit some readers better than others?

    \b
    Example:
      cqa-fast study fit --model Qwen/Qwen2.5-7B --run run --works works.jsonl \\
          --audiences audiences.jsonl --out fit
    """
    from cqa.claims.fit.claim import Fit

    _run(Fit(config), config, as_json)


@command()
@takes(RubricConfig)
@JSON
def rubric(config: RubricConfig, as_json: bool) -> None:
    """Do constraints together favour the good option by more than the sum of each alone?

    \b
    Example:
      cqa-fast study rubric --model Qwen/Qwen2.5-7B --run run \\
          --pairs constraints.jsonl --out rubric
    """
    from cqa.claims.rubric.claim import RubricGap

    _run(RubricGap(config), config, as_json)


@command()
@takes(ProbeConfig)
@JSON
def probe(config: ProbeConfig, as_json: bool) -> None:
    """Can a linear probe read from the states which option is good, layer by layer?

    \b
    Example:
      cqa-fast study probe --model Qwen/Qwen2.5-7B --run run \\
          --pairs pairs.jsonl --out probe
    """
    from cqa.claims.probe.claim import Probe

    _run(Probe(config), config, as_json)


@command()
@takes(VerdictConfig)
@JSON
def verdict(config: VerdictConfig, as_json: bool) -> None:
    """Asked which text of a pair is better, does the model say what its dI says?

    \b
    Example:
      cqa-fast study verdict --model Qwen/Qwen2.5-7B --run run \\
          --pairs literary.jsonl --out verdict
    """
    from cqa.claims.verdict.claim import Verdict

    _run(Verdict(config), config, as_json)


for one in (attention, conditioning, duality, fit, probe, rubric, verdict):
    study.add_command(one)
