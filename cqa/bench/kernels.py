"""The kernel level: every op against what the device can do, and the products by their strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cqa.bench.device import Ceilings, Peak
from cqa.bench.ops import Bench, Op, Work, ops_of
from cqa.bench.results import (
    Line,
    MeasuredOp,
    MeasuredRoute,
    OpLine,
    Product,
    Rates,
    RouteLine,
    Unmeasured,
)
from cqa.bench.timing import Call, Stopwatch, Timing
from cqa.kernels.backend import Backend
from cqa.kernels.matmul import mm
from cqa.kernels.token_logprobs import ROUTES, Route, token_stats
from cqa.model.memory import give_back

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of the norm, against the reference
HEAD_ROWS = (256, 2048, 16384)


def measure_ops(bench: Bench, ceilings: Ceilings, seconds: float) -> Iterator[Line]:
    """Yield every op, forward and backward: its time, rates, and fractions of the ceilings.

    An op is compared with its PyTorch reference before it is timed; one whose results differ, or
    that fails, is named with the reason instead of a time.
    """
    watch = Stopwatch(bench.decoder.device, flush=True)
    for op in ops_of(bench):
        try:
            error = difference(op, bench.decoder.backend)
        except (RuntimeError, ValueError, NotImplementedError) as failure:
            yield Unmeasured(OpLine(op.name), f"{type(failure).__name__}: {failure}"[:500])
            continue
        allowed = TOLERANCE[bench.decoder.dtype]
        if not error <= allowed:
            problem = f"off by {error:.1e} of its norm, over {allowed:.0e}"
            yield Unmeasured(OpLine(op.name), problem)
            continue
        for way, call, work in _ways(op, bench):
            timing = watch.measure({way: call}, seconds=seconds)[way]
            yield MeasuredOp(OpLine(op.name), way, error, rates(work, timing, ceilings))


def rates(work: Work, timing: Timing, ceilings: Ceilings) -> Rates:
    """Return a time beside the work done in it."""
    flops_per_s, bytes_per_s = work.flops / timing.median_s, work.n_bytes / timing.median_s
    return Rates(
        time=timing,
        flops=work.flops,
        bytes=work.n_bytes,
        flops_per_s=flops_per_s,
        bytes_per_s=bytes_per_s,
        of_gemm=flops_per_s / ceilings.gemm_flops_per_s,
        of_copy=bytes_per_s / ceilings.copy_bytes_per_s,
        of_ceiling=ceilings.floor_s(work.flops, work.n_bytes) / timing.median_s,
    )


def _ways(op: Op, bench: Bench) -> Iterator[tuple[str, Call, Work]]:
    backend = bench.decoder.backend
    yield "forward", lambda: op.run(backend), op.forward
    if op.library is not None:
        yield "by the library", op.library, op.forward
    if op.inputs:
        out = op.run(backend)
        dout = torch.randn_like(out)
        yield (
            "backward",
            lambda: torch.autograd.grad(out, op.inputs, dout, retain_graph=True),
            op.backward,
        )


def difference(op: Op, backend: Backend) -> float:
    """Return how far an op is from its reference: the largest of |difference| / |reference|."""
    if op.changes_inputs or backend == "reference":  # the former's tests compare it on copies
        return 0.0
    ours, theirs = _values(op, lambda: op.run(backend)), _values(op, lambda: op.run("reference"))
    norms = [
        float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
        for a, b in zip(ours, theirs, strict=True)
    ]
    return float(torch.tensor(norms).max())  # NaN stays NaN


def _values(op: Op, run: Callable[[], Tensor]) -> list[Tensor]:
    out = run()
    if not op.inputs:
        return [out]
    generator = torch.Generator(out.device).manual_seed(1)
    dout = torch.empty_like(out).normal_(generator=generator)
    return [out.detach(), *torch.autograd.grad(out, op.inputs, dout)]


def measure_strides(bench: Bench, ceilings: Ceilings, seconds: float) -> Iterator[Line]:
    """Yield each group's products at the plain width, with LoRA's columns, and padded as stored.

    The three are timed interleaved. `plain_ratio` is how much longer than the plain one it takes.
    """
    watch = Stopwatch(bench.decoder.device, flush=True)
    device, dtype, m = bench.decoder.device, bench.decoder.dtype, bench.rows
    wide = bench.decoder.compute_dtype
    for projection in bench.decoder.layers[0].projections:
        columns, n = projection.columns, projection.weight.shape[0]
        k = columns.features
        widths = dict.fromkeys((k, k + columns.rank_columns, columns.total))
        weights = {width: torch.randn(n, width, device=device, dtype=dtype) for width in widths}
        inputs = {width: torch.randn(m, width, device=device, dtype=wide) for width in widths}
        dy = torch.randn(m, n, device=device, dtype=wide)
        for way in ("forward", "backward"):
            calls = {
                str(width): _product_call(way, inputs[width], weights[width], dy)
                for width in widths
            }
            timings = watch.measure(calls, seconds=seconds)
            for width in widths:
                timing = timings[str(width)]
                rate = 2 * m * n * width / timing.median_s
                yield Product(
                    group="+".join(member.name for member in projection.members),
                    way=way,
                    m=m,
                    n=n,
                    k=width,
                    time=timing,
                    flops_per_s=rate,
                    of_gemm=rate / ceilings.gemm_flops_per_s,
                    plain_ratio=timing.median_s / timings[str(k)].median_s,
                )


def _product_call(way: str, x: Tensor, weight: Tensor, dy: Tensor) -> Call:
    if way == "forward":
        return lambda: mm(x, weight.T)
    return lambda: mm(dy, weight)


def measure_head(bench: Bench, ceilings: Ceilings, seconds: float) -> Iterator[Line]:
    """Yield the scoring head at several heights: time, rate, and memory beside its operands."""
    device, head = bench.decoder.device, bench.decoder.head
    watch = Stopwatch(device)
    heights = HEAD_ROWS if device.type == "cuda" else HEAD_ROWS[:1]
    for rows in heights:
        hidden = torch.randn(rows, head.shape[1], device=device, dtype=bench.decoder.compute_dtype)
        target = torch.randint(head.shape[0], (rows,), device=device)
        calls = _routes(hidden, head, target, bench)
        expected = token_stats(hidden[:64], head, target[:64], backend="reference").logp
        peaks = {}
        for name, call in list(calls.items()):
            peak = Peak(device)
            logp = call().reshape(-1)[:64].double()
            peaks[name] = peak.extra_bytes()
            error = float((logp - expected).norm() / expected.norm())
            if not error <= TOLERANCE[head.dtype]:
                del calls[name]
                yield Unmeasured(RouteLine(name, rows), f"off by {error:.1e} of its norm")
        timings = watch.measure(calls, seconds=seconds)
        work = Work(2 * rows * head.numel(), (head.numel() + hidden.numel()) * head.element_size())
        for name, timing in timings.items():
            yield MeasuredRoute(
                RouteLine(name, rows),
                extra_bytes=peaks[name],
                logits_bytes=4 * rows * head.shape[0],
                rates=rates(work, timing, ceilings),
            )
        del hidden, target, calls
        give_back()


def _routes(hidden: Tensor, head: Tensor, target: Tensor, bench: Bench) -> dict[str, Call]:
    """Return the ways to score rows: those that scoring can take, and plain log-softmax."""

    def plain() -> Tensor:
        return torch.log_softmax((hidden @ head.T).float(), -1).gather(1, target[:, None])

    backend = bench.decoder.backend

    def scored(route: Route) -> Call:
        return lambda: token_stats(hidden, head, target, backend=backend, route=route).logp

    routes = ROUTES if backend == "triton" else ROUTES[:1]  # other backends have one
    calls: dict[str, Call] = {route: scored(route) for route in routes}
    if 8 * hidden.shape[0] * head.shape[0] < 24 * 2**30:
        calls["plain log_softmax"] = plain
    return calls
