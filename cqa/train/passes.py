"""One pass of training: samples packed, forward, head, loss and backward; and how large it may be.

A step's samples, the global batch, are packed into as few passes as the memory holds. The loss is
divided by the labels of the whole global batch, and dropout and noise are drawn by a row's number
in it, so the split changes the result by no more than the order of its sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Self, TypeVar

import torch
from torch import Tensor

from cqa.data.samples import EncodedSample
from cqa.errors import ResourceError
from cqa.kernels.attention import Gathered, determinism_restored
from cqa.kernels.embed import Noise
from cqa.kernels.philox import Dropout, device_key
from cqa.layout import PackedBatch, pack_documents
from cqa.model.decoder import Decoder
from cqa.model.memory import give_back, ran_out
from cqa.train.config import TrainConfig
from cqa.train.plan import split_passes

T = TypeVar("T")
Phase = Literal["forward", "head", "backward", "optimizer"]
OnPhase = Callable[[Phase], None]  # called when a phase has been launched
HINT = "--recompute, --dtype bf16, or a lower --max-tokens with --too-long"


def ignore_phase(_: Phase) -> None:
    """The observer of a step that nobody observes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig:
    """What of a run's settings a step reads; see `TrainConfig`."""

    dropout: float = TrainConfig.dropout
    neftune_alpha: float = TrainConfig.neftune_alpha
    seed: int = TrainConfig.seed
    recompute: bool = TrainConfig.recompute
    weight_decay: float = TrainConfig.weight_decay
    max_grad_norm: float = TrainConfig.max_grad_norm

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        """Return the step's part of a run's settings."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class TrainingPass:
    """Samples packed for one forward and backward, on the decoder's device."""

    batch: PackedBatch
    rows: Tensor  # (M,) int64, each row's number in the global batch
    lengths: Tensor  # (M,) int64, the tokens of each row's own sample
    step: int
    key: Tensor  # (2,) int64, (seed, step) for Triton's kernels
    n_labels: int | Tensor  # of the global batch; a tensor of shape () where it is replayed
    is_label: Tensor | None = None  # (T,) 0 or 1: whether a target counts; None is all
    spans: tuple[Gathered, Gathered] | None = None  # laid out already, where it is replayed

    @classmethod
    def pack(
        cls,
        samples: Sequence[EncodedSample],
        device: torch.device,
        *,
        seed: int,
        step: int,
        n_labels: int,
        first_row: int = 0,
    ) -> Self:
        """Pack samples whose rows begin at `first_row` of the global batch; or none, as `IDLE`."""
        is_label = None if samples else torch.zeros(1, device=device)
        samples = samples or [IDLE]
        batch = pack_documents([(sample.ids, sample.loss_mask) for sample in samples]).to(device)
        lengths = torch.tensor([len(sample.ids) for sample in samples for _ in sample.ids])
        return cls(
            batch=batch,
            rows=torch.arange(first_row, first_row + batch.n_rows, device=device),
            lengths=lengths.to(device),
            step=step,
            key=device_key(seed, step, device),
            n_labels=n_labels,
            is_label=is_label,
        )


# A pass that counts for nothing, of a process that has fewer than the others: the weights of a base
# that is spread are gathered by all together.
IDLE = EncodedSample("", (0, 0), (False, True), slice(0), "")


def with_idle(passes: list[list[EncodedSample]], decoder: Decoder) -> list[list[EncodedSample]]:
    """Return as many passes as the process with the most has, if a base is spread over them."""
    if decoder.spread is None:
        return passes
    most = decoder.spread.ranks.largest(len(passes))
    return passes + [[]] * (most - len(passes))


def label_logprobs(
    decoder: Decoder, given: TrainingPass, config: StepConfig, on_phase: OnPhase = ignore_phase
) -> Tensor:
    """Run a pass forward, head included; return each target's log-probability, (T,) nats."""
    dropout, noise = None, None
    if config.dropout:
        dropout = Dropout(config.dropout, config.seed, given.step, given.rows, given.key)
    if config.neftune_alpha:
        noise = Noise(
            config.neftune_alpha, config.seed, given.step, given.rows, given.lengths, given.key
        )
    hidden = decoder.hidden(
        given.batch, dropout=dropout, noise=noise, recompute=config.recompute, spans=given.spans
    )
    on_phase("forward")
    return decoder.token_logprobs(hidden, given.batch.target)


def forward_backward(
    decoder: Decoder, given: TrainingPass, config: StepConfig, on_phase: OnPhase = ignore_phase
) -> Tensor:
    """Add a pass's gradient to the flat buffer; return its share of the mean loss, () nats."""
    logp = label_logprobs(decoder, given, config, on_phase)
    if given.is_label is not None:
        logp = logp * given.is_label
    loss = -logp.sum() / given.n_labels
    on_phase("head")
    with determinism_restored():
        loss.backward()
    if decoder.spread is not None:
        decoder.spread.rest()
    on_phase("backward")
    return loss.detach()


class PassLimit:
    """The most tokens that one pass may hold; lowered when memory runs out, never raised."""

    def __init__(self, tokens: int, *, may_split: bool = True) -> None:
        """Start with a limit; one that may not split leaves memory that ran out to the caller."""
        self.tokens, self.may_split = tokens, may_split

    def run(
        self,
        samples: Sequence[EncodedSample],
        run_passes: Callable[[list[list[EncodedSample]]], T],
        undo: Callable[[], object] = lambda: None,
    ) -> T:
        """Call `run_passes` with samples split by the limit, again with less where memory ran out.

        Args:
            samples: What has to be passed through.
            run_passes: Runs all of them; the list is of the samples of each pass.
            undo: Takes back what a failed call has left.

        Raises:
            ResourceError: There is not even enough for each sample alone.
        """
        while True:
            passes = split_passes(list(samples), self.tokens)
            try:
                return run_passes(passes)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error) or not self.may_split:
                    raise
                shared = [n_tokens(part) for part in passes if len(part) > 1]
                if not shared:
                    longest = max(samples, key=lambda sample: len(sample.ids))
                    raise ResourceError(
                        f"expected enough memory for one sample a pass, got none with "
                        f"`{longest.id}` of {len(longest.ids)} tokens the longest",
                        where=longest.where,
                        hint=HINT,
                    ) from error
            self.tokens = max(shared) // 2
            give_back()
            undo()


def n_tokens(samples: Sequence[EncodedSample]) -> int:
    """Count the tokens of some samples."""
    return sum(len(sample.ids) for sample in samples)


def n_labels(samples: Sequence[EncodedSample]) -> int:
    """Count the tokens of some samples that are learned."""
    return sum(sample.n_labels for sample in samples)
