"""A training step and a scoring job summed over what was recorded, for cards that are not here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch
from aot_compile import Compiled, compile_launch
from aot_launch import Execution, Launch
from aot_record import (
    Attention,
    Event,
    Events,
    Product,
    ScoringJob,
    bench_ops,
    scoring_job,
    training_step,
)
from aot_time import (
    HOST_S,
    START_S,
    Card,
    best_fill,
    launch_time,
    product_time,
    streaming_s,
)

from cqa.bench.config import Job, Window
from cqa.bench.shapes import BenchModel
from cqa.train.passes import StepConfig


@dataclass(frozen=True)
class Workload:
    """What is predicted: a model in bf16, its adapter's rank and dropout, a window and a job."""

    shape: str = "qwen2.5-7b"
    rank: int = 32
    dropout: float = 0.05
    window: str = "0+700,0+700"
    job: str = "40x800+2x100*8"

    @property
    def model(self) -> BenchModel:
        """The model, without data."""
        return BenchModel(self.shape, None, self.rank, "meta", torch.bfloat16)


PAPER = Workload()
PAPER_STEPS = 564  # of two samples


@dataclass(frozen=True)
class Line:
    """What one kind of event comes to."""

    part: str
    what: str
    count: int
    each_s: float
    limit: str

    @property
    def seconds(self) -> float:
        """All of them."""
        return self.count * self.each_s


@dataclass(frozen=True)
class Sum:
    """A step or a job on a card: its lines, the longest first, and the host's own time."""

    lines: tuple[Line, ...]
    events: Events

    @property
    def launches(self) -> int:
        """How many there are."""
        return self.events.total()

    @property
    def device_s(self) -> float:
        """What the device takes."""
        return sum(line.seconds for line in self.lines)

    @property
    def host_s(self) -> float:
        """What the host takes to launch it."""
        return self.launches * HOST_S

    @property
    def seconds(self) -> float:
        """The longer of the two."""
        return max(self.device_s, self.host_s)

    @property
    def parts_s(self) -> dict[str, float]:
        """Seconds by part, the longest first."""
        parts: dict[str, float] = defaultdict(float)
        for line in self.lines:
            parts[line.part] += line.seconds
        return dict(sorted(parts.items(), key=lambda item: -item[1]))


@cache
def compiled(launch: Launch, architecture: int) -> Compiled:
    """Compile a launch once."""
    return compile_launch(launch, architecture)


def compile_all(launches: Iterable[Launch], architectures: Iterable[int]) -> None:
    """Compile side by side what will be asked for."""
    jobs = [(launch, each) for launch in dict.fromkeys(launches) for each in architectures]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: compiled(*job), jobs))


def launches_in(events: Iterable[Event]) -> list[Launch]:
    """Return the distinct compiled forms among events."""
    return list(dict.fromkeys(e.launch for e in events if isinstance(e, Execution)))


def summed(events: Events, card: Card, code: Callable[[Launch, int], Compiled] = compiled) -> Sum:
    """Predict events on a card, one after the other."""
    lines = [_line(event, n, card, code) for event, n in events.items() if n]
    lines.sort(key=lambda line: -line.seconds)
    return Sum(tuple(lines), events)


def _line(event: Event, count: int, card: Card, code: Callable[[Launch, int], Compiled]) -> Line:
    if isinstance(event, Execution):
        time = launch_time(code(event.launch, card.architecture), event, card)
        where = " × ".join(str(n) for n in event.grid if n > 1) or "1"
        what = f"{event.launch.name}, grid {where}"
        return Line(event.launch.kernel_name, what, count, time.seconds, time.limit)
    if isinstance(event, Product):
        seconds = product_time(event.m, event.n, event.k, event.n_bytes, card, wide=event.wide)
        fill = best_fill(event.m, event.n, card.multiprocessors)
        what = f"{event.m} × {event.k} by {event.n}, waves {fill:.2f}"
        return Line(
            "head's products" if event.head else "products", what, count, seconds, "products"
        )
    if isinstance(event, Attention):
        seconds = START_S + max(
            event.flops / card.attention_flops_per_s, streaming_s(event.n_bytes, card)
        )
        way = "backward" if event.backward else "forward"
        return Line("attention", way, count, seconds, "products")
    seconds = START_S + streaming_s(event.n_bytes, card)
    limit = "memory" if seconds > 2 * START_S else "start"
    what = f"{event.name}, {event.n_bytes / 1e6:.3g} MB"
    return Line("other ops of PyTorch", what, count, seconds, limit)


@dataclass(frozen=True)
class Predicted:
    """A card's step, job, and the paper's run."""

    card: Card
    step: Sum
    base: Sum  # a job's passes under the base alone
    adapted: Sum  # under an adapter, with its change
    n_models: int
    fed: int  # rows of a model
    computed: int

    @property
    def job_s(self) -> float:
        """The job under the base and its adapters, which lie ready on the device."""
        return self.base.seconds + (self.n_models - 1) * self.adapted.seconds

    @property
    def totals_s(self) -> dict[str, float]:
        """What goals are set for."""
        step = self.step.seconds
        return {"step": step, "job": self.job_s, "paper run": PAPER_STEPS * step}

    @property
    def job_parts_s(self) -> dict[str, float]:
        """Seconds of the job by part, the longest first."""
        parts: dict[str, float] = defaultdict(float)
        for part, seconds in self.base.parts_s.items():
            parts[part] += seconds
        for part, seconds in self.adapted.parts_s.items():
            parts[part] += (self.n_models - 1) * seconds
        return dict(sorted(parts.items(), key=lambda item: -item[1]))


def predict(cards: Iterable[Card], work: Workload = PAPER) -> list[Predicted]:
    """Record, compile and sum for some cards."""
    recorded: dict[int, tuple[Events, ScoringJob]] = {}
    job, model = Job.parse(work.job), work.model
    found = []
    for card in cards:
        n = card.multiprocessors  # nothing else of a card decides what is launched
        if n not in recorded:
            recorded[n] = (step_of(card, work), scoring_job(model, job, card))
        step, passes = recorded[n]
        events = (*step, *passes.base, *passes.adapted)
        compile_all(launches_in(events), [card.architecture])
        sums = (summed(each, card) for each in (step, passes.base, passes.adapted))
        found.append(Predicted(card, *sums, job.models, passes.fed, passes.computed))
    return found


def step_of(card: Card, work: Workload) -> Events:
    """Record the step of a workload."""
    settings = StepConfig(dropout=work.dropout)
    return training_step(work.model, Window.parse(work.window), settings, card)


def predict_ops(card: Card, work: Workload) -> dict[str, float]:
    """Return seconds of each op that `cqa-fast bench` times, by its name there."""
    recorded = bench_ops(work.model, Window.parse(work.window), work.dropout, card)
    compile_all(launches_in(e for events in recorded.values() for e in events), [card.architecture])
    return {name: summed(events, card).device_s for name, events in recorded.items()}
