"""Observers of training and scoring that act at one of their events."""

import os
import signal
from collections.abc import Callable

from cqa.schema.events import Step
from cqa.schema.record import Record

Observer = Callable[[Record], None]


def on(kind: type[Record], number: int, act: Callable[[], object]) -> Observer:
    """Return an observer that acts at the nth event of a kind."""
    seen: list[Record] = []

    def on_event(event: Record) -> None:
        if isinstance(event, kind):
            seen.append(event)
            if len(seen) == number:
                act()

    return on_event


def at_step(step: int, act: Callable[[], object]) -> Observer:
    """Return an observer that acts once that step has been logged."""

    def on_event(event: Record) -> None:
        if isinstance(event, Step) and event.step == step:
            act()

    return on_event


def crash() -> None:
    raise KeyboardInterrupt


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
