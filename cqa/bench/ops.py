"""Each op at the model's shapes: what to call, and the work that the call has to do.

Bytes are the least traffic, every operand read once and every result written once; operations are
those of the products, LoRA's columns and their padding included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cqa.bench.config import Window
from cqa.bench.shapes import BenchModel
from cqa.kernels.adamw import AdamState, adam_rates, adamw_step
from cqa.kernels.attention import AttentionSpan, attention
from cqa.kernels.backend import Backend
from cqa.kernels.copy_shrink import copy_shrink
from cqa.kernels.matmul import wide_mm
from cqa.kernels.outer_sums import OuterSum, outer_sums, outer_sums_native
from cqa.kernels.philox import NO_DROPOUT, Dropout
from cqa.kernels.rms_norm import norm_shrink
from cqa.kernels.rope import rope
from cqa.kernels.shrink import Shrink, shrink_da_native, shrink_da_triton
from cqa.kernels.swiglu_shrink import swiglu_shrink
from cqa.kernels.token_logprobs import token_logprobs, token_stats
from cqa.model.config import DecoderConfig
from cqa.model.decoder import Decoder
from cqa.model.lora import TrainableLora
from cqa.model.projection import Projection


@dataclass(frozen=True, slots=True)
class Work:
    """What a call has to do."""

    flops: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Op:
    """An op at one shape."""

    name: str
    run: Callable[[Backend | None], Tensor]
    forward: Work
    inputs: tuple[Tensor, ...] = ()  # what backward gives the gradient of
    backward: Work = Work(0, 0)
    changes_inputs: bool = False
    library: Callable[[], Tensor] | None = None  # the same by the library, to be timed beside it


@dataclass(frozen=True, slots=True)
class Bench:
    """One layer of a model with its adapter, and a window's rows."""

    config: DecoderConfig
    decoder: Decoder
    lora: TrainableLora
    window: Window
    dropout: Dropout | None

    @classmethod
    def of(cls, bench_model: BenchModel, window: Window, dropout: float) -> Bench:
        """Draw one layer of the model's sizes."""
        config = bench_model.config
        decoder = bench_model.decoder(replace(config, n_layers=1, windows=config.windows[:1]))
        lora = TrainableLora(decoder, bench_model.spec, 0)
        rows = torch.arange(cls._rows(window), device=decoder.device)
        drawn = Dropout(dropout, 1, 2, rows) if dropout else None
        return cls(config, decoder, lora, window, drawn)

    @staticmethod
    def _rows(window: Window) -> int:
        return sum(sum(sample) for sample in window.samples)

    @property
    def rows(self) -> int:
        """M: tokens of the window."""
        return self._rows(self.window)

    def new(self, *shape: int) -> Tensor:
        """Draw an input that wants a gradient."""
        d = self.decoder
        return torch.randn(*shape, dtype=d.compute_dtype, device=d.device).requires_grad_()


def ops_of(bench: Bench) -> Iterator[Op]:
    """Yield every op of a training step and of scoring, in the order in which they run."""
    layer = bench.decoder.layers[0]
    if layer.input_norm is not None:
        yield _norm(bench, "norm+qkv shrink", layer.qkv, layer.input_norm)
    yield _product(bench, "qkv", layer.qkv)
    yield _rope(bench)
    yield _attention(bench)
    yield _copy(bench, layer.o)
    yield _product(bench, "o", layer.o)
    if layer.post_norm is not None:
        yield _norm(bench, "norm+gate_up shrink", layer.gate_up, layer.post_norm)
    yield _product(bench, "gate_up", layer.gate_up)
    yield _swiglu(bench, layer.down)
    yield _product(bench, "down", layer.down)
    yield _gradients_of_b(bench, "gate_up", layer.gate_up)
    yield _gradients_of_a(bench, "down", layer.down)
    yield from _head(bench)
    yield _adamw(bench)


def _shrunk(bench: Bench, projection: Projection, read: int) -> tuple[Work, Work]:
    """Work of an op that writes an augmented input from `read` numbers a row, and backward."""
    m, columns = bench.rows, projection.columns
    item = bench.decoder.compute_dtype.itemsize
    a = columns.rank_columns * columns.features
    products = 2 * m * a
    # backward reads dX_aug and what was normed or gated, writes dx; A is read, dA written
    forward = m * (read + columns.total) * item + 4 * a
    backward = m * (columns.total + 2 * read) * item + 8 * a
    return Work(products, forward), Work(2 * products, backward)


def _shrink(bench: Bench, projection: Projection) -> Shrink:
    """Return a group's low-rank side, whose gradient autograd has, to be compared."""
    shrink = projection.shrink(bench.dropout)
    assert shrink is not None
    return replace(shrink, gradient=None)


def _norm(bench: Bench, name: str, projection: Projection, weight: Tensor) -> Op:
    x = bench.new(bench.rows, projection.columns.features)
    shrink, eps = _shrink(bench, projection), bench.config.rms_norm_eps
    forward, backward = _shrunk(bench, projection, projection.columns.features)
    return Op(
        name,
        lambda backend: norm_shrink(x, weight, eps, projection.columns, shrink, backend=backend),
        forward,
        (x, shrink.lora_a),
        backward,
    )


def _copy(bench: Bench, projection: Projection) -> Op:
    x = bench.new(bench.rows, projection.columns.features)
    shrink = _shrink(bench, projection)
    forward, backward = _shrunk(bench, projection, projection.columns.features)
    return Op(
        "copy+o shrink",
        lambda backend: copy_shrink(x, projection.columns, shrink, backend=backend),
        forward,
        (x, shrink.lora_a),
        backward,
    )


def _swiglu(bench: Bench, projection: Projection) -> Op:
    gate_up = bench.new(bench.rows, 2 * bench.config.intermediate_size)
    shrink = _shrink(bench, projection)
    forward, backward = _shrunk(bench, projection, gate_up.shape[1])
    return Op(
        "swiglu+down shrink",
        lambda backend: swiglu_shrink(gate_up, projection.columns, shrink, backend=backend),
        forward,
        (gate_up, shrink.lora_a),
        backward,
    )


def _product(bench: Bench, name: str, projection: Projection) -> Op:
    m, k, n = bench.rows, projection.columns.total, projection.weight.shape[0]
    x_aug = bench.new(m, k)
    item, weight_item = bench.decoder.compute_dtype.itemsize, bench.decoder.dtype.itemsize
    traffic = (m * k + m * n) * item + k * n * weight_item
    db = 2 * m * bench.lora.spec.rank * n
    return Op(
        f"product {name}",
        lambda backend: projection(x_aug, backend=backend or bench.decoder.backend),
        Work(2 * m * k * n, traffic),
        (x_aug,),
        Work(2 * m * k * n + db, traffic),
    )


def _gradients_of_b(bench: Bench, name: str, projection: Projection) -> Op:
    """Return dB of a group, which is a part of its product's backward."""
    m, n, rank = bench.rows, projection.weight.shape[0], bench.lora.spec.rank
    dy = bench.new(m, n).detach()
    s = bench.new(m, len(projection.members) * rank).detach()
    sums = tuple(
        OuterSum((member.rows.start, member.rows.stop), g * rank, member.rows.start * rank)
        for g, member in enumerate(projection.members)
    )

    def library() -> Tensor:
        out = torch.empty(n, rank, device=dy.device)
        for part in sums:
            columns, ranks = slice(*part.columns), slice(part.s_column, part.s_column + rank)
            out[columns] = wide_mm(dy[:, columns].T, s[:, ranks], backend="reference")
        return out

    def ours(backend: Backend | None) -> Tensor:
        out = torch.empty(n, rank, device=dy.device)
        if (backend or bench.decoder.backend) == "triton":
            outer_sums(dy, s, out, sums, (rank, 1), rank, scale=1.0, dropout=NO_DROPOUT)
        elif (backend or bench.decoder.backend) == "native":
            outer_sums_native(dy, s, out, sums=sums, scale=1.0)
        else:
            return library()
        return out

    work = Work(2 * m * n * rank, (dy.numel() + s.numel()) * dy.element_size() + 4 * n * rank)
    return Op(f"dB {name}", ours, work, library=library)


def _gradients_of_a(bench: Bench, name: str, projection: Projection) -> Op:
    """Return dA of a group, which is a part of its op's backward."""
    shrink, m, k = _shrink(bench, projection), bench.rows, projection.columns.features
    x, ds = bench.new(m, k).detach(), bench.new(m, projection.columns.rank_columns).detach()
    drop = shrink.dropout
    keeps = [drop.keep(module, k).to(x.device) for module in shrink.modules] if drop else []
    if drop:  # as forward has noted it
        shrink = replace(shrink, kept=drop.kept(shrink.modules, k))

    def library() -> Tensor:
        out = torch.empty_like(shrink.lora_a)
        for g in range(len(shrink.modules)):
            ranks = slice(g * shrink.rank, (g + 1) * shrink.rank)
            dropped = x * keeps[g] if keeps else x
            out[ranks] = wide_mm(ds[:, ranks].T, dropped, backend="reference") * shrink.scale
        return out

    def ours(backend: Backend | None) -> Tensor:
        out = torch.empty_like(shrink.lora_a)
        if (backend or bench.decoder.backend) == "triton":
            shrink_da_triton(ds, x, shrink, out, False)
        elif (backend or bench.decoder.backend) == "native":
            shrink_da_native(ds, x, shrink, out)
        else:
            return library()
        return out

    n_bytes = (x.numel() + ds.numel()) * x.element_size() + 4 * shrink.lora_a.numel()
    work = Work(2 * m * k * projection.columns.rank_columns, n_bytes)
    return Op(f"dA {name}", ours, work, library=library)


def _rope(bench: Bench) -> Op:
    c, m = bench.config, bench.rows
    x = bench.new(m, c.n_heads, c.head_dim)
    angle = torch.rand(m, c.head_dim // 2, device=x.device)
    cos, sin = angle.cos(), angle.sin()
    work = Work(0, 2 * x.numel() * x.element_size() + 2 * 4 * angle.numel())
    return Op("rope of q", lambda backend: rope(x, cos, sin, backend=backend), work, (x,), work)


def _attention(bench: Bench) -> Op:
    c = bench.config
    q = bench.new(bench.rows, c.n_heads, c.head_dim)
    k, v = (bench.new(bench.rows, c.n_kv_heads, c.head_dim) for _ in range(2))
    spans, scores, start = [], 0, 0
    for sample in bench.window.samples:
        n = sum(sample)
        spans.append(AttentionSpan((start, start + n), (start, start + n), (0, 0)))
        scores += n * (n + 1) // 2
        start += n
    flops = 4 * c.n_heads * c.head_dim * scores
    traffic = (2 * q.numel() + 2 * k.numel()) * q.element_size()
    return Op(
        "attention",
        lambda backend: attention(q, k, v, tuple(spans), backend=backend),
        Work(flops, traffic),
        (q, k, v),
        Work(flops * 5 // 2, 2 * traffic),
    )


def _head(bench: Bench) -> Iterator[Op]:
    c, head = bench.config, bench.decoder.head
    labels = sum(response for _, response in bench.window.samples)
    hidden = bench.new(labels, c.hidden_size)
    target = torch.randint(c.vocab_size, (labels,), device=hidden.device)
    flops = 2 * labels * head.numel()
    traffic = (head.numel() + 2 * hidden.numel()) * head.element_size()
    yield Op(
        "head and loss",  # forms its gradient in forward
        lambda backend: token_logprobs(hidden, head, target, backend=backend),
        Work(2 * flops, 2 * traffic),
        (hidden,),
        Work(0, 2 * hidden.numel() * hidden.element_size()),
    )
    rows = hidden.detach()
    yield Op(
        "head statistics",
        lambda backend: token_stats(rows, head, target, backend=backend).logp,
        Work(flops, traffic),
    )


def _adamw(bench: Bench) -> Op:
    n = bench.lora.n_params * bench.config.n_layers
    device = bench.decoder.device
    state = AdamState(*(torch.rand(n, device=device) for _ in range(4)))
    rates = adam_rates(lr=1e-5, step=3, weight_decay=0.0, device=device)
    norm = torch.ones((), device=device)

    def step(backend: Backend | None) -> Tensor:
        adamw_step(state, rates, norm=norm, max_norm=1.0, backend=backend)
        return state.param

    return Op("adamw", step, Work(0, 7 * 4 * n), changes_inputs=True)
