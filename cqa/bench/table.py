"""A benchmark as text for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cqa.model.memory import size_text

Result = dict[str, Any]


def bench_text(data: dict[str, Any]) -> str:
    """Return everything measured as tables, best read at 100 columns."""
    device, ceilings = data["device"], data["ceilings"]
    settings = data["settings"]
    lines = [
        f"{settings['model'] or settings['shape']}, {data['dtype']} on {device['name']}",
        f"large product {_rate(ceilings['gemm_flops_per_s'])}FLOP/s, "
        f"copy {_rate(ceilings['copy_bytes_per_s'])}B/s, in this run",
    ]
    for level, part, head, row in TABLES:
        if results := data.get(level, {}).get(part):
            lines += ["", *_table(head, results, row)]
    return "\n".join(lines)


def _table(
    head: Sequence[str], results: Sequence[Result], row: Callable[[Result], Sequence[str]]
) -> list[str]:
    """Return aligned lines: the first column to the left, the others to the right."""
    rows = [list(head)]
    notes: dict[int, str] = {}
    for result in results:
        if "problem" in result:
            notes[len(rows)] = result["problem"]
            rows.append([_name(result), *[""] * (len(head) - 1)])
        else:
            rows.append(list(row(result)))
    widths = [max(len(cells[k]) for cells in rows) for k in range(len(head))]
    lines = []
    for k, cells in enumerate(rows):
        if k in notes:
            lines.append(f"{cells[0]:<{widths[0]}}  not measured: {notes[k]}")
            continue
        rest = "  ".join(f"{c:>{w}}" for c, w in zip(cells[1:], widths[1:], strict=True))
        lines.append(f"{cells[0]:<{widths[0]}}  {rest}".rstrip())
    return lines


def _name(result: Result) -> str:
    if "op" in result:
        return f"{result['op']} {result.get('way', '')}".rstrip()
    if "group" in result:
        return f"{result['group']} {result['way']}"
    for key in ("route", "window", "job"):
        if key in result and "peer" not in result:
            return str(result[key])
    return f"against {result['peer']}"


def _op_row(r: Result) -> list[str]:
    return [
        _name(r), _time(r["time"]), f"{_rate(r['flops_per_s'])}F/s", _share(r["of_gemm"]),
        f"{_rate(r['bytes_per_s'])}B/s", _share(r["of_copy"]), _share(r["of_ceiling"]),
    ]  # fmt: skip


def _product_row(r: Result) -> list[str]:
    shape = f"{r['m']} x {r['n']} x {r['k']}"
    ratio = f"{r['plain_ratio']:.3f}"
    return [_name(r), shape, _time(r["time"]), _share(r["of_gemm"]), ratio]


def _head_row(r: Result) -> list[str]:
    return [
        _name(r), f"{r['rows']:,}", _time(r["time"]), _share(r["of_gemm"]),
        size_text(r["extra_bytes"]), size_text(r["logits_bytes"]),
    ]  # fmt: skip


def _step_row(r: Result) -> list[str]:
    phases = r["phases_s"]
    total = sum(phases.values())
    idle = "" if r["gaps"] is None else _share(r["gaps"]["idle_share"])
    return [
        _name(r), _time(r["time"]), f"{r['tokens_per_s']:,.0f}", _share(r["mfu"]),
        size_text(r["peak_bytes"]),
        *(_share(seconds / total) for seconds in phases.values()), idle,
    ]  # fmt: skip


def _job_row(r: Result) -> list[str]:
    return [
        _name(r), _time(r["time"]), f"{r['tokens_per_s']:,.0f}", f"{r['items_per_s']:,.1f}",
        _share(r["mfu"]), size_text(r["peak_bytes"]), size_text(r["extra_bytes"]),
        size_text(r["all_logits_bytes"]),
    ]  # fmt: skip


def _peer_row(r: Result) -> list[str]:
    return [
        _name(r), f"{r['ratio']:.2f}x", f"[{r['low']:.2f}, {r['high']:.2f}]",
        _seconds(r["ours_s"]), _seconds(r["peer_s"]),
        size_text(r["ours_peak_bytes"]), size_text(r["peer_peak_bytes"]),
    ]  # fmt: skip


_PEERS = ("", "faster by", "95 % interval", "ours", "theirs", "peak, ours", "theirs")
TABLES: tuple[tuple[str, str, Sequence[str], Callable[[Result], Sequence[str]]], ...] = (
    (
        "step", "windows",
        ("step", "time", "tokens/s", "MFU", "peak", "forward", "head", "backward", "optimizer",
         "idle"),
        _step_row,
    ),
    ("step", "peers", _PEERS, _peer_row),
    (
        "score", "jobs",
        ("score", "time", "tokens/s", "items/s", "MFU", "peak", "beside the model",
         "logits of an item"),
        _job_row,
    ),
    ("score", "peers", _PEERS, _peer_row),
    (
        "kernel", "ops",
        ("op", "time", "", "of product", "", "of copy", "of the lower limit"),
        _op_row,
    ),
    (
        "kernel", "products",
        ("product", "M x N x K", "time", "of product", "to plain"),
        _product_row,
    ),
    ("kernel", "head", ("head", "rows", "time", "of product", "memory", "logits"), _head_row),
)  # fmt: skip


def _time(timing: Result) -> str:
    return _seconds(timing["median_s"])


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
