"""One training step and one pass of scoring, recorded on tensors without data.

The decoder runs as on a GPU: its kernels are noted in place of being launched, its products,
attention and what else PyTorch does are seen as they are dispatched. Nothing is counted by hand;
the layers between the first and the last are alike, so a few of them tell of any number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from aot_launch import Execution, launches_to
from aot_time import Card
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cqa.bench.ops
import cqa.kernels.philox
import cqa.kernels.token_logprobs
import cqa.model.decoder
import cqa.model.lora
import cqa.model.projection
from cqa.bench.config import Job, Window
from cqa.bench.ops import Bench, ops_of
from cqa.bench.score import null_tokenizer, random_items
from cqa.bench.shapes import BenchModel
from cqa.bench.step import LEARNING_RATE, random_samples
from cqa.kernels.adamw import adam_rates, adamw_step, gradient_norm
from cqa.kernels.attention import AttentionSpan, Gathered, gathered
from cqa.kernels.philox import Dropout
from cqa.kernels.token_logprobs import LARGE_CHUNK_BYTES, token_stats
from cqa.layout import pack_trees
from cqa.model.block_rows import LARGE_PASS_ROWS, fullest
from cqa.model.config import DecoderConfig
from cqa.model.decoder import Decoder
from cqa.model.lora import Adapter, TrainableLora, adapted_members, attach
from cqa.score.prefix_batch import passes
from cqa.train.passes import StepConfig
from cqa.train.step import backward_passes

META = torch.device("meta")


@dataclass(frozen=True)
class Product:
    """A matrix product of the library's: (m, k) by (k, n)."""

    m: int
    n: int
    k: int
    n_bytes: int
    wide: bool  # fp32 factors
    head: bool  # with the output embedding


@dataclass(frozen=True)
class Attention:
    """Attention by the library, all spans in one call."""

    flops: int
    n_bytes: int
    backward: bool


@dataclass(frozen=True)
class Streaming:
    """Anything else that PyTorch launches: it reads and writes, that is all."""

    name: str
    n_bytes: int


Event = Execution | Product | Attention | Streaming
Events = Counter[Event]

_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # where the left factor stands
_OTHER_WORK = re.compile("mm|mv|dot|conv|attention|einsum")  # more than reading and writing
_GATHERS = ("index", "index_select", "embedding", "gather")
_NOTHING = ("empty", "empty_like", "new_empty", "empty_strided", "empty_permuted")
_WRITE_ALONE = ("copy_", "zero_", "fill_")


class _Recorder(TorchDispatchMode):
    """Sees every op of PyTorch that works on the device."""

    def __init__(self, events: Events, vocab_size: int) -> None:
        super().__init__()
        self.events, self.vocab_size = events, vocab_size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        read = {name: value for name, value in kwargs.items() if name != "out"}
        given = [x for x in tree_leaves((args, read)) if _on_device(x)]
        made = [x for x in tree_leaves(out) if _on_device(x)]
        if made and name not in _NOTHING and not _is_view(func, given, made):
            self.events[self._event(name, args, given, made)] += 1
        return out

    def _event(
        self, name: str, args: tuple[Any, ...], given: list[Tensor], made: list[Tensor]
    ) -> Event:
        written = sum(map(_bytes, made))
        if (product := name.rstrip("_")) in _PRODUCTS:
            left = _PRODUCTS[product]
            a, b = args[left : left + 2]
            m, k, n = a.shape[:-1].numel(), a.shape[-1], b.shape[-1]
            n_bytes = written + sum(map(_bytes, given))
            return Product(m, n, k, n_bytes, a.itemsize > 2, self.vocab_size in (n, k))
        if _OTHER_WORK.search(name):
            raise NotImplementedError(f"expected a product that is known, got aten.{name}")
        if name in _GATHERS:
            return Streaming(name, 2 * written + sum(map(_bytes, given[1:])))
        if name in _WRITE_ALONE:
            return Streaming(name, written + sum(map(_bytes, given[1:])))
        return Streaming(name, written + sum(map(_bytes, given)))


def _on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "meta"


def _is_view(func: Any, given: list[Tensor], made: list[Tensor]) -> bool:
    if func._schema.is_mutable:
        return False
    held = {x.untyped_storage()._cdata for x in given}
    return all(x.untyped_storage()._cdata in held for x in made)


def _bytes(x: Tensor) -> int:
    """Bytes that lie there; what is expanded lies there once."""
    n = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        n *= size if stride else 1
    return n * x.itemsize


class _Attend(torch.autograd.Function):
    """Notes a call of the library's attention, and its backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, note: Any, pairs: int) -> Tensor:
        n_bytes = 2 * _bytes(q) + _bytes(k) + _bytes(v)
        ctx.flops, ctx.n_bytes, ctx.note = 4 * q.shape[1] * q.shape[2] * pairs, n_bytes, note
        ctx.save_for_backward(q, k, v)
        note(Attention(ctx.flops, n_bytes, False))
        return q.new_empty(q.shape)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        ctx.note(Attention(5 * ctx.flops // 2, 2 * ctx.n_bytes, True))
        return *(x.new_empty(x.shape) for x in ctx.saved_tensors), None, None


def _pairs(span: AttentionSpan) -> int:
    """Queries times the keys that each sees."""
    n, own = span.query[1] - span.query[0], span.own[1] - span.own[0]
    before = max(0, span.prefix[1] - span.prefix[0]) + own - n
    return n * before + n * (n + 1) // 2


@contextmanager
def recorded(card: Card, vocab_size: int) -> Iterator[Events]:
    """Record what runs within, as if on a card."""
    events: Events = Counter()

    def note(event: Event) -> None:
        events[event] += 1

    def attend(
        q: Tensor, k: Tensor, v: Tensor, spans: tuple[AttentionSpan, ...], **_: Any
    ) -> Tensor:
        laid: Gathered = gathered(spans, k.shape[0], k.device)
        if laid.keys is not None:
            k, v = k[laid.keys], v[laid.keys]
        out: Tensor = _Attend.apply(q, k, v, note, sum(map(_pairs, spans)))  # type: ignore[no-untyped-call]
        return out

    def height(backend: Any, device: Any, hidden_size: int) -> int:
        return fullest(hidden_size, card.multiprocessors)

    with ExitStack() as stack:
        stack.enter_context(launches_to(note))
        for module in (cqa.model.decoder, cqa.bench.ops):
            stack.enter_context(mock.patch.object(module, "attention", attend))
        stack.enter_context(mock.patch.object(cqa.model.decoder, "block_rows", height))
        stack.enter_context(
            mock.patch.object(
                cqa.kernels.token_logprobs, "training_chunk_bytes", return_value=LARGE_CHUNK_BYTES
            )  # each of the cards has the memory
        )
        stack.enter_context(mock.patch.object(Tensor, "is_cuda", True, create=True))
        stack.enter_context(_Recorder(events, vocab_size))
        yield events


def decoder_of(config: DecoderConfig, rank_columns: dict[str, int]) -> Decoder:
    """Return a decoder without data, laid out as on a GPU."""
    with mock.patch.object(cqa.model.projection, "row_multiple", return_value=64):
        return Decoder(
            config, rank_columns=rank_columns, dtype=torch.bfloat16, device=META, backend="triton"
        )


def _lora(decoder: Decoder, model: BenchModel) -> TrainableLora:
    def uniforms(seed: int, step: int, stream: int, count: int) -> Any:
        return np.zeros(count, np.float32)

    with mock.patch.object(cqa.model.lora, "uniforms", uniforms):
        return TrainableLora(decoder, model.spec, 0)


def all_layers(n_layers: int, least: int, record: Callable[[int], Events]) -> Events:
    """Return what a number of layers does, from records of the least that tells and of one more."""
    few, more = record(least), record(least + 1)
    left = n_layers - least
    return Counter({e: few[e] + left * (more[e] - few[e]) for e in more | few})


def shorter(config: DecoderConfig, n_layers: int) -> DecoderConfig:
    """Return a config of that many of its layers."""
    return replace(
        config,
        n_layers=n_layers,
        windows=config.windows[:n_layers],
        rotations=config.rotations[:n_layers],
    )


def training_step(model: BenchModel, window: Window, settings: StepConfig, card: Card) -> Events:
    """Record an optimizer step: forward, head, backward, norm, AdamW, and the weights' update."""
    samples = random_samples(window, model.config.vocab_size)

    def layers(n: int) -> Events:
        decoder = decoder_of(shorter(model.config, n), model.spec.rank_columns())
        _lora(decoder, model)
        with recorded(card, model.config.vocab_size) as events:
            backward_passes(decoder, [samples], settings, step=1)
        return events

    layers(3)  # fills what is kept from step to step
    # the first layer has no gradient to pass on, and the last has fewer rows
    events = all_layers(model.config.n_layers, 2, layers)
    decoder = decoder_of(model.config, model.spec.rank_columns())
    lora = _lora(decoder, model)
    with recorded(card, model.config.vocab_size) as optimizer:
        rates = adam_rates(lr=LEARNING_RATE, step=1, weight_decay=0.0, device=META)
        norm = gradient_norm(lora.state.grad, backend="triton")
        adamw_step(lora.state, rates, norm=norm, max_norm=1.0, backend="triton")
        lora.after_step()
    return events + optimizer


@dataclass(frozen=True)
class ScoringJob:
    """What a scoring job does under one model, and how many rows it feeds and computes."""

    base: Events
    adapted: Events
    fed: int
    computed: int


def scoring_job(model: BenchModel, job: Job, card: Card) -> ScoringJob:
    """Record the passes of a job under the base, and under an adapter with its loading in place."""
    height = fullest(model.config.hidden_size, card.multiprocessors)
    batch_tokens = LARGE_PASS_ROWS // height * height
    items = random_items(job, model.config.vocab_size)
    batches = [
        pack_trees(prefixes.trees())[0].to(META)
        for _, prefixes in passes(items, null_tokenizer(), batch_tokens)
    ]

    def run(n: int, adapter: bool) -> Events:
        decoder = decoder_of(shorter(model.config, n), model.spec.rank_columns())
        made = _adapter(decoder, model) if adapter else None
        with recorded(card, model.config.vocab_size) as events:
            if made is not None:
                attach(decoder, made)
            for batch in batches:
                hidden = decoder.hidden_for_scoring(batch)
                token_stats(hidden, decoder.head, batch.target, backend="triton")
        return events

    n = model.config.n_layers
    rows = [batch.n_rows for batch in batches]
    return ScoringJob(
        all_layers(n, 1, lambda layers: run(layers, False)),
        all_layers(n, 1, lambda layers: run(layers, True)),
        sum(rows),
        sum(-(-n_rows // height) * height for n_rows in rows),
    )


def _adapter(decoder: Decoder, model: BenchModel) -> Adapter:
    spec, weights = model.spec, {}
    for projection in decoder.projections():
        for name in adapted_members(projection, spec):
            width, k = projection.member(name).width, projection.columns.features
            pair = (
                torch.empty(spec.rank, k, device=META),
                torch.empty(width, spec.rank, device=META),
            )
            weights[projection.layer, name] = pair
    return Adapter(spec, weights)


def bench_ops(model: BenchModel, window: Window, dropout: float, card: Card) -> dict[str, Events]:
    """Record each op that `cqa-fast bench --levels kernel` times, by the name that it has there."""
    decoder = decoder_of(shorter(model.config, 1), model.spec.rank_columns())
    lora, rows = _lora(decoder, model), sum(map(sum, window.samples))
    drawn = Dropout(dropout, 1, 2, torch.arange(rows, device=META)) if dropout else None
    found = {}

    def words(seed: int, step: int, stream: int, numbers: Tensor, calls: int) -> Any:
        return np.zeros((rows, 4 * calls), np.uint32)

    with mock.patch.object(cqa.kernels.philox, "row_words", words):  # rows have no numbers here
        ops = list(ops_of(Bench(model.config, decoder, lora, window, drawn)))
    for op in ops:
        with recorded(card, model.config.vocab_size) as events:
            out = op.run("triton")
            found[f"{op.name} forward"] = Counter(events)
            if op.inputs:
                torch.autograd.grad(out, op.inputs, torch.empty_like(out))
                found[f"{op.name} backward"] = events - found[f"{op.name} forward"]
        if op.library is not None:
            with recorded(card, model.config.vocab_size) as events:
                op.library()
            found[f"{op.name} by the library"] = events
    return found
