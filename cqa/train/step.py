"""One optimizer step: the passes of a global batch, forward and backward, then AdamW."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cqa.data.samples import EncodedSample
from cqa.errors import NumericsError
from cqa.kernels.adamw import adam_rates, adamw_step, gradient_norm
from cqa.model.decoder import Decoder
from cqa.model.lora import TrainableLora
from cqa.ranks import ALONE, Ranks
from cqa.train.config import TrainConfig
from cqa.train.graphs import Graphs
from cqa.train.passes import (
    OnPhase,
    PassLimit,
    StepConfig,
    TrainingPass,
    forward_backward,
    ignore_phase,
    n_labels,
    n_tokens,
    with_idle,
)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step came to."""

    loss_nats: float  # mean over the global batch's labels
    grad_norm: float  # before clipping
    n_tokens: int
    n_labels: int
    seconds: float


def take_step(
    lora: TrainableLora,
    samples: Sequence[EncodedSample],
    config: StepConfig,
    *,
    step: int,
    lr: float,
    limit: PassLimit | None = None,
    graphs: Graphs | None = None,
    ranks: Ranks = ALONE,
    on_phase: OnPhase = ignore_phase,
) -> StepResult:
    """Take one optimizer step.

    Args:
        lora: The adapter in training.
        samples: The global batch.
        config: The settings that a step reads.
        step: Its number, from 1, for the random streams and AdamW's bias correction.
        lr: Its learning rate.
        limit: The most tokens of a pass, lowered where memory runs out; by default the setting's.
        graphs: What replays a pass, where it is to be replayed.
        ranks: The processes that share the step; all take it with the whole global batch.
        on_phase: Called after each phase of each pass that is not replayed, and at the end.

    Raises:
        NumericsError: Loss or gradient is not finite; no step is taken.
        ResourceError: There is not enough memory for one sample alone.
    """
    decoder, started = lora.decoder, time.perf_counter()
    limit = limit or PassLimit(TrainConfig.pass_tokens)
    ours, first_row = ranks.share(samples)
    labels = n_labels(samples)
    lora.forget_gradient()
    loss = limit.run(
        ours,
        lambda passes: backward_passes(
            decoder, with_idle(passes, decoder), config, step=step, labels=labels,
            first_row=first_row, graphs=graphs, on_phase=on_phase,
        ),
        undo=lora.forget_gradient,
    )  # fmt: skip
    lora.complete_gradient()
    ranks.add_up(lora.state.grad)
    ranks.add_up(loss)
    rates = adam_rates(lr=lr, step=step, weight_decay=config.weight_decay, device=decoder.device)
    norm = gradient_norm(lora.state.grad, backend=decoder.backend)
    checked = norm.where(loss.isfinite(), torch.nan)  # no step is taken unless both are finite
    adamw_step(
        lora.state, rates, norm=checked, max_norm=config.max_grad_norm, backend=decoder.backend
    )
    lora.after_step()
    on_phase("optimizer")
    loss_nats, grad_norm = float(loss), float(norm)  # here the host waits for the device
    if not math.isfinite(loss_nats) or not math.isfinite(grad_norm):
        raise NumericsError(
            f"expected a finite loss and gradient at step {step}, got {loss_nats} and {grad_norm} "
            f"for samples {', '.join(sample.id for sample in samples)}",
            hint="a lower --lr, or look at these samples; the last complete state is intact",
        )
    seconds = time.perf_counter() - started
    return StepResult(loss_nats, grad_norm, n_tokens(samples), labels, seconds)


def backward_passes(
    decoder: Decoder,
    passes: Sequence[Sequence[EncodedSample]],
    config: StepConfig,
    *,
    step: int,
    labels: int | None = None,
    first_row: int = 0,
    graphs: Graphs | None = None,
    on_phase: OnPhase = ignore_phase,
) -> Tensor:
    """Write the gradient of a global batch's passes to the flat buffer; return its mean loss.

    The first pass after a step writes it, later ones add; a part that no pass reaches stays.

    The loss stays on the device, shape (), fp64, nats.

    Args:
        decoder: The model, its adapter in training.
        passes: The samples of each pass; one without is run for the others' sake alone.
        config: The settings that a step reads.
        step: Its number, from 1.
        labels: Labels of the global batch, where the passes are a part of it.
        first_row: Where in the global batch the part begins.
        graphs: What replays a pass, where it is to be replayed.
        on_phase: Called after each phase of each pass that is not replayed.
    """
    if labels is None:
        labels = sum(map(n_labels, passes))
    if graphs is not None and len(passes) == 1:
        replayed = graphs.run(passes[0], step)
        if replayed is not None:
            return replayed
    loss = torch.zeros((), dtype=torch.float64, device=decoder.device)
    for samples in passes:
        given = TrainingPass.pack(
            samples,
            decoder.device,
            seed=config.seed,
            step=step,
            n_labels=labels,
            first_row=first_row,
        )
        loss += forward_backward(decoder, given, config, on_phase)
        if samples:
            first_row += given.batch.n_rows
    return loss
