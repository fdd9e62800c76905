"""The loss on held-out samples: a diagnostic of every epoch, which selects nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from cqa.data.samples import EncodedSample
from cqa.errors import NumericsError
from cqa.model.decoder import Decoder
from cqa.ranks import ALONE, Ranks
from cqa.schema.events import Eval
from cqa.train.passes import (
    PassLimit,
    StepConfig,
    TrainingPass,
    label_logprobs,
    n_labels,
    with_idle,
)
from cqa.train.plan import Plan

WITHOUT_NOISE = StepConfig(dropout=0.0, neftune_alpha=0.0)


@torch.no_grad()
def evaluate(
    plan: Plan,
    decoder: Decoder,
    step: int,
    limit: PassLimit | None = None,
    ranks: Ranks = ALONE,
) -> Eval:
    """Return the mean loss over the learned validation tokens: a diagnostic, selecting nothing.

    Args:
        plan: The run.
        decoder: The model as it is after `step`, which is 0 before the first.
        step: The last step.
        limit: The most tokens of a pass; by default the setting's.
        ranks: The processes that share the samples.
    """
    limit = limit or PassLimit(plan.config.pass_tokens)
    started = time.perf_counter()
    labels = n_labels(plan.validation)
    ours, _ = ranks.share(plan.validation)
    loss = limit.run(ours, lambda passes: _loss_of(with_idle(passes, decoder), decoder, step))
    if ranks.count > 1:
        total = torch.tensor(loss, dtype=torch.float64, device=decoder.device)
        ranks.add_up(total)
        loss = float(total)
    return Eval(
        step=step,
        epoch=plan.epoch_of(step) if step else 0,
        eval_loss_nats=loss / labels,
        n_labels=labels,
        eval_s=round(time.perf_counter() - started, 6),
    )


def _loss_of(passes: Sequence[Sequence[EncodedSample]], decoder: Decoder, step: int) -> float:
    """Return the summed loss of some passes, nats."""
    total = 0.0
    for samples in passes:
        given = TrainingPass.pack(samples, decoder.device, seed=0, step=0, n_labels=1)
        logp = label_logprobs(decoder, given, WITHOUT_NOISE).double()
        loss = -float(logp.sum()) if samples else 0.0
        if not math.isfinite(loss):
            raise NumericsError(
                f"expected a finite eval_loss after step {step}, got {loss} for samples "
                f"{', '.join(sample.id for sample in samples)}",
                hint="the epochs before it are intact" if step else "look at these samples",
            )
        total += loss
    return total
