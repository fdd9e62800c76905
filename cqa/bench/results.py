"""What a benchmark measures: a line of each table, and all of it as its JSON file holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from cqa.bench.counts import Flops
from cqa.bench.device import Ceilings
from cqa.bench.timing import Comparison, Timing
from cqa.bench.trace import Gaps
from cqa.schema.written import Result, merged, unwritten

# Deep models magnify the rounding of fp32 beyond that, where texts are ids at random. Float64 then
# decides: ours may be no farther from it than this many times the peer's own error, and the peer's,
# beyond which it computes something else, has its bound.
MOST_ERROR = 2.0
MOST_OF_PEER = 5e-3


@dataclass(frozen=True, slots=True)
class Line(Result):
    """One line of a table."""

    @property
    def name(self) -> str:
        """What was measured, in the first column."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Unmeasured(Line):
    """What was not measured, and why."""

    line: Line = field(metadata=merged())
    problem: str

    @property
    def name(self) -> str:
        """What was to be measured."""
        return self.line.name


@dataclass(frozen=True, slots=True)
class Rates(Result):
    """A time beside the work done in it, and fractions of what the device can do at best.

    `of_ceiling` is the least time that product rate and copy bandwidth allow over the time taken;
    operands that stay in a cache can make it more than 1.
    """

    time: Timing
    flops: int
    bytes: int
    flops_per_s: float
    bytes_per_s: float
    of_gemm: float
    of_copy: float
    of_ceiling: float


@dataclass(frozen=True, slots=True)
class OpLine(Line):
    """An op by its name."""

    op: str

    @property
    def name(self) -> str:
        """The op's name."""
        return self.op


@dataclass(frozen=True, slots=True)
class MeasuredOp(Line):
    """An op, forward or backward."""

    line: OpLine = field(metadata=merged())
    way: str
    difference: float  # from the reference, over the norm of that
    rates: Rates = field(metadata=merged())

    @property
    def name(self) -> str:
        """The op's name and the way."""
        return f"{self.line.op} {self.way}"


@dataclass(frozen=True, slots=True)
class Product(Line):
    """A group's product at one width."""

    group: str
    way: str
    m: int
    n: int
    k: int
    time: Timing
    flops_per_s: float
    of_gemm: float
    plain_ratio: float  # how much longer than the plain width it takes

    @property
    def name(self) -> str:
        """The group and the way."""
        return f"{self.group} {self.way}"


@dataclass(frozen=True, slots=True)
class RouteLine(Line):
    """A way to score rows, and how many."""

    route: str
    rows: int

    @property
    def name(self) -> str:
        """The way."""
        return self.route


@dataclass(frozen=True, slots=True)
class MeasuredRoute(Line):
    """The scoring head at some height."""

    line: RouteLine = field(metadata=merged())
    extra_bytes: int  # held at the most, beside the operands
    logits_bytes: int  # that all logits would take
    rates: Rates = field(metadata=merged())

    @property
    def name(self) -> str:
        """The way."""
        return self.line.route


@dataclass(frozen=True, slots=True)
class StepFlops(Result):
    """Operations of a step by part, and their sum."""

    parts: Flops = field(metadata=merged())
    total: int


@dataclass(frozen=True, slots=True)
class MeasuredStep(Line):
    """An optimizer step over one global batch."""

    window: str
    n_tokens: int
    n_labels: int
    time: Timing
    tokens_per_s: float
    flops: StepFlops
    flops_per_s: float
    mfu: float
    peak_bytes: int
    estimated_bytes: int
    phases_s: dict[str, float]  # by phase, without graphs
    gaps: Gaps | None  # None without a GPU

    @property
    def name(self) -> str:
        """The lengths of the samples."""
        return self.window


@dataclass(frozen=True, slots=True)
class MeasuredJob(Line):
    """A scoring job, under a base and its adapters."""

    job: str
    n_models: int
    tokens_fed: int
    tokens_scored: int
    time: Timing
    tokens_per_s: float
    items_per_s: float
    flops: int
    flops_per_s: float
    mfu: float
    peak_bytes: int
    extra_bytes: int
    all_logits_bytes: int

    @property
    def name(self) -> str:
        """The lengths of the items."""
        return self.job


@dataclass(frozen=True, slots=True)
class StepPeer(Line):
    """Another trainer."""

    peer: str
    window: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """Whom ours is compared with."""
        return f"against {self.peer}"


@dataclass(frozen=True, slots=True)
class ScorePeer(Line):
    """Another scorer."""

    peer: str
    job: str
    tokens_fed: int  # by ours
    batch_size: int  # of the peer

    @property
    def name(self) -> str:
        """Whom ours is compared with."""
        return f"against {self.peer}"


@dataclass(frozen=True, slots=True)
class Errors(Result):
    """How far ours and a peer are from the same computed in float64, relative."""

    ours: float
    peer: float

    def accepted(self, agreement: float) -> bool:
        """Whether the two compute the same, ours with no more rounding than usual."""
        bound = max(agreement, MOST_ERROR * self.peer)
        return self.ours <= bound and self.peer <= MOST_OF_PEER


@dataclass(frozen=True, slots=True)
class ComparedPeer(Line):
    """Ours against a peer that answers the same."""

    line: Line = field(metadata=merged())
    difference: float  # of what the two answer, relative
    comparison: Comparison = field(metadata=merged())
    ours_peak_bytes: int
    peer_peak_bytes: int
    errors: Errors | None = None  # where the two differ by so much that float64 had to decide

    @property
    def name(self) -> str:
        """Whom ours is compared with."""
        return self.line.name


@dataclass(frozen=True, slots=True)
class Benchmark(Result):
    """The JSON file: the settings, the device, and the lines of every part of every level."""

    format: int
    settings: dict[str, Any]
    windows: tuple[str, ...]
    jobs: tuple[str, ...]
    dtype: str
    device: dict[str, Any]
    ceilings: Ceilings
    lines: dict[str, dict[str, list[Line]]] = field(metadata=unwritten(), default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as `json.dumps` takes it, null for what is not a finite number."""
        measured = {
            level: {part: [line.to_json() for line in lines] for part, lines in parts.items()}
            for level, parts in self.lines.items()
        }
        held: dict[str, Any] = _finite(Result.to_json(self) | measured)
        return held


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
