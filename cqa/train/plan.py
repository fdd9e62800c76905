"""What a run will do, decided before any weight is loaded: samples, split, order, steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cqa.data.hub import data_files
from cqa.data.jsonl import check_columns
from cqa.data.lengths import encode_samples
from cqa.data.samples import EncodedSample, Sample, read_samples
from cqa.data.spacing import Spacing
from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, DataError, ModelError
from cqa.identity import digest_bytes
from cqa.kernels.philox import ORDER, SPLIT, permutation, stream_of
from cqa.model.checkpoint import locate
from cqa.model.config import DecoderConfig, read_config
from cqa.model.lora import LoraSpec
from cqa.text import listed
from cqa.train.config import TARGETS, TrainConfig
from cqa.train.examples import Example, examples_of
from cqa.train.placebo import deal
from cqa.train.schedule import first_learning_step, learning_rate, warmup_steps


@dataclass(frozen=True, slots=True)
class Plan:
    """A run's samples and steps; everything random in it follows from the seed."""

    config: TrainConfig
    folder: Path  # of the base model
    shape: DecoderConfig
    tokenizer: Tokenizer
    formats: tuple[str, ...]  # of the files, each once
    train: tuple[EncodedSample, ...]
    validation: tuple[EncodedSample, ...]
    affected_ids: tuple[str, ...]  # of samples that --too-long dropped or cut
    data_digest: str
    notes: tuple[str, ...] = ()  # what a user should know of the samples
    examples: tuple[Example, ...] = ()  # the first sample of every kind

    @property
    def spec(self) -> LoraSpec:
        """The adapter to train."""
        c = self.config
        targets = tuple(name for name in TARGETS if name in c.targets)
        return LoraSpec(c.rank, c.alpha, c.rslora, targets)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches per epoch; a last partial one is stepped too."""
        return math.ceil(len(self.train) / self.config.global_batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.steps_per_epoch * self.config.epochs

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, that step 1 … total belongs to."""
        return (step - 1) // self.steps_per_epoch + 1

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch is complete after this step."""
        return step % self.steps_per_epoch == 0

    def global_batch(self, step: int) -> list[EncodedSample]:
        """Return the samples of one step, in the epoch's own random order."""
        size = self.config.global_batch_size
        first = (step - 1) % self.steps_per_epoch * size
        order = self._order(self.epoch_of(step))
        return [self.train[i] for i in order[first : first + size]]

    def passes(self) -> Iterator[list[EncodedSample]]:
        """Yield the samples of every pass of the run."""
        size = self.config.global_batch_size
        for epoch in range(1, self.config.epochs + 1):
            order = self._order(epoch)
            for first in range(0, len(order), size):
                samples = [self.train[i] for i in order[first : first + size]]
                yield from split_passes(samples, self.config.pass_tokens)

    def _order(self, epoch: int) -> list[int]:
        return permutation(self.config.seed, epoch, stream_of(ORDER), len(self.train))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        warmup = warmup_steps(self.total_steps, self.config.warmup_ratio)
        return learning_rate(step, self.total_steps, peak=self.config.lr, warmup=warmup)


def make_plan(config: TrainConfig) -> Plan:
    """Read model config, tokenizer and data, and lay out the run.

    Raises:
        DataError: The data is malformed, too long, or too little.
        ConfigError: No step would learn.
        ModelError: Config or tokenizer cannot be used.
    """
    folder = locate(config.model)
    shape = read_config(folder)
    check_columns(config.with_columns, config.columns)
    if shape.experts is not None:
        raise ModelError(
            f"expected a model without experts, got {shape.model_type}: it is scored, not trained",
            where=str(folder),
            hint="score takes it, with adapters of q, k, v and o that other programs trained",
        )
    tokenizer = Tokenizer(folder, template=config.template, allow_special=config.allow_special)
    tokenizer.limit_ids(shape.vocab_size)
    limit = min(config.max_tokens or shape.max_positions, shape.max_positions)

    spacing = Spacing()

    def encode(samples: list[Sample], limit: int) -> tuple[list[EncodedSample], list[str]]:
        whole_text = config.loss_on == "whole-text"
        return encode_samples(samples, tokenizer, limit, config.too_long, whole_text=whole_text)

    def load(*paths: Path) -> tuple[list[Sample], list[EncodedSample], list[str]]:
        samples = read_samples(*paths, columns=config.columns)
        for sample in samples:
            if sample.format == "prompt" and config.template == "plain":
                question, answer = sample.turns
                spacing.add(sample.id, question.text, (answer.text,))
        return samples, *encode(samples, limit)

    read, samples, affected = load(*config.data)
    where = listed(config.data)
    digests = data_files(*config.data)
    share = config.validation_share
    held = read
    if share is None:
        path = Path(config.validation)
        digests += data_files(path)
        train, (held, validation, more) = samples, load(path)
        affected += more
    else:
        train, validation = split(samples, share, config.seed)
    if config.placebo:
        kept = {sample.id for sample in train}
        dealt = deal([s for s in read if s.id in kept], config.seed, where)
        # The samples were chosen before: a dealt one may be longer, so that the steps are the same.
        train, more = encode(dealt, limit if config.too_long == "truncate" else shape.max_positions)
        affected += [name for name in more if name not in affected]
    if not train:
        raise DataError("expected at least one sample to train on, got none", where=where)
    n_steps = math.ceil(len(train) / config.global_batch_size) * config.epochs
    if first_learning_step(n_steps, config.warmup_ratio) is None:
        raise ConfigError(
            "expected steps that learn, got one, at the zero rate that a warm-up begins with",
            hint="more --epochs, a smaller --grad-accum, or --warmup-ratio 0",
        )
    formats = tuple(dict.fromkeys(sample.format for sample in read))
    shown = examples_of([*_paired(read, train), *_paired(held, validation)])
    return Plan(
        config, folder, shape, tokenizer, formats, tuple(train), tuple(validation),
        tuple(affected), digest_bytes(digests), tuple(spacing.warnings("prompt", "response")),
        shown,
    )  # fmt: skip


def _paired(
    read: list[Sample], encoded: list[EncodedSample]
) -> Iterator[tuple[Sample, EncodedSample]]:
    """Yield each encoded sample with what was read."""
    by_id = {sample.id: sample for sample in read}
    yield from ((by_id[sample.id], sample) for sample in encoded)


def split(
    samples: list[EncodedSample], share: float, seed: int
) -> tuple[list[EncodedSample], list[EncodedSample]]:
    """Hold out ceil(share · n) samples at random; both parts keep the file's order."""
    n_held = math.ceil(share * len(samples))
    order = permutation(seed, 0, stream_of(SPLIT), len(samples))
    held = set(order[:n_held])
    train = [s for i, s in enumerate(samples) if i not in held]
    return train, [s for i, s in enumerate(samples) if i in held]


def split_passes(samples: list[EncodedSample], pass_tokens: int) -> list[list[EncodedSample]]:
    """Split samples into passes of at most `pass_tokens` tokens, a longer one alone."""
    passes: list[list[EncodedSample]] = []
    room = 0
    for sample in samples:
        if not passes or len(sample.ids) > room:
            passes.append([])
            room = pass_tokens
        passes[-1].append(sample)
        room -= len(sample.ids)
    return passes
