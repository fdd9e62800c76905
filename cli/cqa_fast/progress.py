"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import sys
import time
from contextlib import suppress
from typing import IO, Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cqa.schema.events import (
    BenchEvent,
    BenchPart,
    BenchResult,
    ModelScored,
    ModelStart,
    Note,
    RowsWritten,
    ScoreEvent,
    ScoreStart,
)
from cqa.text import counted
from cqa_fast.terminal import message

Event = dict[str, Any]


class _Unfailing(io.TextIOBase):
    """A stream that loses what cannot be written: a closed terminal or pipe stops no work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it was closed in this process
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


class _Display:
    """A rich bar on a terminal; without one, only the lines."""

    def __init__(self) -> None:
        self.console = Console(
            file=cast(IO[str], _Unfailing(sys.stderr)), highlight=False, markup=False, emoji=False
        )
        self._bar: Progress | None = None
        self._task: Any = None

    def start(self, total: int, done: int = 0) -> None:
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=done)

    def advance(self, n: int, description: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=n, description=message(description))

    def line(self, text: str) -> None:
        self.console.print(message(text), soft_wrap=True)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Progress:
    def __init__(self) -> None:
        self.display = _Display()

    def close(self) -> None:
        """Take the bar off the terminal."""
        self.display.stop()

    def note(self, text: str) -> None:
        """Say what the user should know and need not mend."""
        self.display.line(f"note: {text}")


class TrainProgress(_Progress):
    """Shows a training run's events."""

    def __init__(self) -> None:
        super().__init__()
        self._start: Event = {}
        self._losses: list[float] = []
        self._tokens = 0
        self._seconds = 0.0

    def __call__(self, event: Event) -> None:
        """Take one event of `cqa.train.loop.train`."""
        kind = event["event"]
        if kind == "start":
            self._begin(event)
        elif kind == "step":
            self._step(event)
        elif kind == "eval":
            self.display.line(f"         eval_loss {event['eval_loss_nats']:.4f} nats/token")
        elif kind == "dev":
            self.display.line(
                f"         dev ddI {event['mean_ddi_nats']:+.2f} nats ({event['group']}, "
                f"{counted(event['n'], 'item')})"
            )
        elif kind == "memory":
            self.note(f"memory ran out; passes of at most {event['pass_tokens']} tokens from here")
        elif kind == "note":
            self.note(event["text"])
        elif kind == "finished":
            self.display.line("this run is finished; nothing to do")

    def _begin(self, event: Event) -> None:
        self._start = event
        samples, steps = counted(event["n_train"], "sample"), counted(event["total_steps"], "step")
        self.display.line(
            f"training {event['n_parameters']:,} LoRA parameters on {samples} "
            f"({event['n_validation']} held out), {steps}, "
            f"{event['dtype']} on {event['device']}"
        )
        if event["step"]:
            self.display.line(f"resuming after step {event['step']}")
        self.display.start(event["total_steps"], event["step"])

    def _step(self, event: Event) -> None:
        self._losses.append(event["loss_nats"])
        self._tokens += event["n_tokens"]
        self._seconds += event["step_s"]
        speed = self._tokens / self._seconds
        text = f"epoch {event['epoch']:>2}  loss {event['loss_nats']:.3f}  {speed:,.0f} tokens/s"
        self.display.advance(1, text)
        if event["step"] % self._start["steps_per_epoch"] == 0:
            mean = sum(self._losses) / len(self._losses)
            self.display.line(
                f"epoch {event['epoch']:>2} loss {mean:.4f} nats/token, {speed:,.0f} tokens/s"
            )
            self._losses.clear()


class ScaleProgress(_Progress):
    """Shows the training runs of a scale study, a bar each."""

    def __init__(self) -> None:
        super().__init__()
        self._name = ""

    def __call__(self, event: Event) -> None:
        """Take one training event of `cqa.study.scale.scale`."""
        kind = event["event"]
        if kind == "run":
            self.display.stop()
            self._name = event["name"]
            state = "done before" if event["done"] else counted(event["n_steps"], "step")
            self.display.line(f"run {event['k']} of {event['n_runs']}: {self._name}, {state}")
            if not event["done"]:
                self.display.start(event["n_steps"])
        elif kind == "start":
            self.display.advance(event["step"], self._name)
        elif kind == "step":
            self.display.advance(1, f"{self._name}  loss {event['loss_nats']:.3f}")


class ScoreProgress(_Progress):
    """Shows a scoring run's events."""

    def __init__(self) -> None:
        super().__init__()
        self._name = ""
        self._tokens = 0
        self._items = 0
        self._since = time.perf_counter()

    def __call__(self, event: ScoreEvent) -> None:
        """Take one event of `cqa.score.run.score`."""
        match event:
            case ScoreStart(n_items=n_items, n_models=n_models):
                self.display.line(
                    f"scoring {counted(n_items, 'item')} under {counted(n_models, 'model')}"
                )
                self.display.start(n_items * n_models)
            case Note(text=text):
                self.note(text)
            case ModelStart(adapter=adapter):
                self._name = adapter or "base"
                self._tokens, self._items, self._since = 0, 0, time.perf_counter()
            case RowsWritten(n=n, n_tokens=n_tokens):
                self._tokens += n_tokens
                self._items += n
                self.display.advance(n, f"{self._name}  {self._speed():,.0f} tokens/s")
            case ModelScored():
                speed = f"{self._tokens:,} tokens, {self._speed():,.0f} tokens/s"
                items = counted(self._items, "item")
                new = f"{items}, {speed}" if self._items else "nothing to add"
                self.display.line(f"{self._name:<10} {new}")

    def _speed(self) -> float:
        return self._tokens / max(1e-9, time.perf_counter() - self._since)


class BenchProgress(_Progress):
    """Shows which part of a benchmark runs."""

    def __call__(self, event: BenchEvent) -> None:
        """Take one event of `cqa.bench.run.bench`."""
        match event:
            case BenchPart(name=name):
                self.display.line(f"measuring {name}")
            case BenchResult(result={"problem": problem, **found}) if problem:
                self.note(f"{found.get('peer') or found.get('op')}: {problem}")
