"""A benchmark as text for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cqa.bench.results import (
    Benchmark,
    ComparedPeer,
    Line,
    MeasuredJob,
    MeasuredOp,
    MeasuredRoute,
    MeasuredStep,
    Product,
    Unmeasured,
)
from cqa.bench.timing import Timing
from cqa.escape import for_terminal
from cqa.model.memory import size_text
from cqa.text import named


def bench_text(data: Benchmark) -> str:
    """Return everything measured as tables, best read at 100 columns."""
    settings, ceilings = data.settings, data.ceilings
    what = named(str(settings["model"] or settings["shape"]))
    lines = [
        f"{what}, {data.dtype} on {data.device['name']}",
        f"large product {_rate(ceilings.gemm_flops_per_s)}FLOP/s, "
        f"copy {_rate(ceilings.copy_bytes_per_s)}B/s, in this run",
    ]
    for level, part, head, row in TABLES:
        if measured := data.lines.get(level, {}).get(part):
            lines += ["", *_table(head, measured, row)]
    return "\n".join(lines)


def _table(
    head: Sequence[str], measured: Sequence[Line], row: Callable[[Any], Sequence[str]]
) -> list[str]:
    """Return aligned lines: the first column to the left, the others to the right."""
    rows = [list(head)]
    notes: dict[int, str] = {}
    for line in measured:
        if isinstance(line, Unmeasured):
            notes[len(rows)] = line.problem
            rows.append([line.name, *[""] * (len(head) - 1)])
        else:
            rows.append([line.name, *row(line)])
    widths = [max(len(cells[k]) for cells in rows) for k in range(len(head))]
    lines = []
    for k, cells in enumerate(rows):
        if k in notes:
            lines.append(f"{cells[0]:<{widths[0]}}  not measured: {for_terminal(notes[k])}")
            continue
        rest = "  ".join(f"{c:>{w}}" for c, w in zip(cells[1:], widths[1:], strict=True))
        lines.append(f"{cells[0]:<{widths[0]}}  {rest}".rstrip())
    return lines


def _op_cells(line: MeasuredOp) -> list[str]:
    r = line.rates
    return [
        _time(r.time), f"{_rate(r.flops_per_s)}F/s", _share(r.of_gemm),
        f"{_rate(r.bytes_per_s)}B/s", _share(r.of_copy), _share(r.of_ceiling),
    ]  # fmt: skip


def _product_cells(line: Product) -> list[str]:
    shape = f"{line.m} x {line.n} x {line.k}"
    return [shape, _time(line.time), _share(line.of_gemm), f"{line.plain_ratio:.3f}"]


def _route_cells(line: MeasuredRoute) -> list[str]:
    return [
        f"{line.line.rows:,}", _time(line.rates.time), _share(line.rates.of_gemm),
        size_text(line.extra_bytes), size_text(line.logits_bytes),
    ]  # fmt: skip


def _step_cells(line: MeasuredStep) -> list[str]:
    total = sum(line.phases_s.values())
    return [
        _time(line.time), f"{line.tokens_per_s:,.0f}", _share(line.mfu),
        size_text(line.peak_bytes),
        *(_share(seconds / total) for seconds in line.phases_s.values()),
        "" if line.gaps is None else _share(line.gaps.idle_share),
    ]  # fmt: skip


def _job_cells(line: MeasuredJob) -> list[str]:
    return [
        _time(line.time), f"{line.tokens_per_s:,.0f}", f"{line.items_per_s:,.1f}",
        _share(line.mfu), size_text(line.peak_bytes), size_text(line.extra_bytes),
        size_text(line.all_logits_bytes),
    ]  # fmt: skip


def _peer_cells(line: ComparedPeer) -> list[str]:
    r = line.comparison
    return [
        f"{r.ratio:.2f}x", f"[{r.low:.2f}, {r.high:.2f}]", _seconds(r.ours_s), _seconds(r.peer_s),
        size_text(line.ours_peak_bytes), size_text(line.peer_peak_bytes),
    ]  # fmt: skip


_PEERS = ("", "faster by", "95 % interval", "ours", "theirs", "peak, ours", "theirs")
TABLES: tuple[tuple[str, str, Sequence[str], Callable[[Any], Sequence[str]]], ...] = (
    (
        "step", "windows",
        ("step", "time", "tokens/s", "MFU", "peak", "forward", "head", "backward", "optimizer",
         "idle"),
        _step_cells,
    ),
    ("step", "peers", _PEERS, _peer_cells),
    (
        "score", "jobs",
        ("score", "time", "tokens/s", "items/s", "MFU", "peak", "beside the model",
         "logits of an item"),
        _job_cells,
    ),
    ("score", "peers", _PEERS, _peer_cells),
    (
        "kernel", "ops",
        ("op", "time", "", "of product", "", "of copy", "of the lower limit"),
        _op_cells,
    ),
    (
        "kernel", "products",
        ("product", "M x N x K", "time", "of product", "to plain"),
        _product_cells,
    ),
    ("kernel", "head", ("head", "rows", "time", "of product", "memory", "logits"), _route_cells),
)  # fmt: skip


def _time(timing: Timing) -> str:
    return _seconds(timing.median_s)


def _seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _rate(value: float) -> str:
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g} "
