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
    Dev,
    Eval,
    Finished,
    Memory,
    ModelScored,
    ModelStart,
    Note,
    RowsWritten,
    ScaleEvent,
    ScaleRun,
    ScaleWait,
    ScoreEvent,
    ScoreStart,
    Step,
    TrainEvent,
    TrainStart,
)
from cqa.text import counted
from cqa_fast.terminal import message


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
        self._steps_per_epoch = 0
        self._losses: list[float] = []
        self._tokens = 0
        self._seconds = 0.0

    def __call__(self, event: TrainEvent) -> None:
        """Take one event of `cqa.train.loop.train`."""
        match event:
            case TrainStart():
                self._begin(event)
            case Step():
                self._step(event)
            case Eval(eval_loss_nats=loss, step=step):
                when = "" if step else ", before the first step"
                self.display.line(f"         eval_loss {loss:.4f} nats/token{when}")
            case Dev(mean_ddi_nats=ddi, group=group, n=n):
                self.display.line(
                    f"         dev ddI {ddi:+.2f} nats ({group}, {counted(n, 'item')})"
                )
            case Memory(pass_tokens=most):
                self.note(f"memory ran out; passes of at most {most} tokens from here")
            case Note(text=text):
                self.note(text)
            case Finished():
                self.display.line("this run is finished; nothing to do")

    def _begin(self, start: TrainStart) -> None:
        self._steps_per_epoch = start.steps_per_epoch
        samples, steps = counted(start.n_train, "sample"), counted(start.total_steps, "step")
        self.display.line(
            f"training {start.n_parameters:,} LoRA parameters on {samples} "
            f"({start.n_validation} held out), {steps}, {start.dtype} on {start.device}"
        )
        if start.step:
            self.display.line(f"resuming after step {start.step}")
        self.display.start(start.total_steps, start.step)

    def _step(self, step: Step) -> None:
        self._losses.append(step.loss_nats)
        self._tokens += step.n_tokens
        self._seconds += step.step_s
        speed = self._tokens / self._seconds
        self.display.advance(
            1, f"epoch {step.epoch:>2}  loss {step.loss_nats:.3f}  {speed:,.0f} tokens/s"
        )
        if step.step % self._steps_per_epoch == 0:
            mean = sum(self._losses) / len(self._losses)
            self.display.line(
                f"epoch {step.epoch:>2} loss {mean:.4f} nats/token, {speed:,.0f} tokens/s"
            )
            self._losses.clear()


class ScaleProgress(_Progress):
    """Shows the training runs of a scale study, a bar each."""

    def __init__(self) -> None:
        super().__init__()
        self._name = ""

    def __call__(self, event: ScaleEvent) -> None:
        """Take one training event of `cqa.study.scale.scale`."""
        match event:
            case ScaleRun():
                self.display.stop()
                self._name = event.name
                state = "done before" if event.done else counted(event.n_steps, "step")
                self.display.line(f"run {event.k} of {event.n_runs}: {self._name}, {state}")
                if not event.done:
                    self.display.start(event.n_steps)
            case TrainStart(step=step):
                self.display.advance(step, self._name)
            case Step(loss_nats=loss):
                self.display.advance(1, f"{self._name}  loss {loss:.3f}")
            case ScaleWait(names=names):
                self.display.stop()
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                self.display.line(f"waiting for other processes: {names[0]}{more}")


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
            case BenchResult(name=name, unmeasured=why) if why:
                self.note(f"{name}: {why}")
