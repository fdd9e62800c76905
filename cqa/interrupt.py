"""SIGINT, SIGTERM, SIGHUP: finish the step in hand, leave a state to resume from, exit 128 + n."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

from cqa.errors import CqaError

ECHO_S = 10.0  # from the terminal's signal to the one that torchrun passes on


class Interrupted(CqaError):
    """A signal ended the work at a point from which it can be resumed."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


@contextmanager
def continued_by(command: str) -> Iterator[None]:
    """Say of work that a signal ends in the body which command continues it.

    Of several around each other the outermost counts, which is the one that was typed.
    """
    try:
        yield
    except Interrupted as stop:
        stop.hint, stop.command = "continue with", command
        raise


@contextmanager
def stopped_at_once(message: str) -> Iterator[None]:
    """Let the first signal end the body wherever it is: nothing of it is kept before its end.

    Raises:
        Interrupted: There was one.
    """
    with Interrupt(at_once=message):
        yield


class Interrupt:
    """While entered, remembers the first signal; a second one has its usual effect at once.

    A signal that was ignored before, as by `nohup` or in a background job of a script, stays
    ignored. torchrun passes on to its processes what the terminal has sent to all of them already;
    so under it a second one that follows within seconds is the first.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, at_once: str | None = None) -> None:
        """Begin; `at_once` is what is said where a signal ends the work by itself."""
        self.requested: int | None = None
        self._echoed_until = 0.0
        self._at_once = at_once
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            heard = (s for s in self.SIGNALS if signal.getsignal(s) is not signal.SIG_IGN)
            self._before = {s: signal.signal(s, self._remember) for s in heard}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def stop(self, message: str) -> NoReturn:
        """End the work; call it where everything is on disk."""
        assert self.requested is not None, "only after a signal"
        raise Interrupted(self.requested, message)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            if time.monotonic() > self._echoed_until:
                self._restore()
                signal.raise_signal(signum)
            return
        self.requested = signum
        if "TORCHELASTIC_RUN_ID" in os.environ:
            self._echoed_until = time.monotonic() + ECHO_S
        else:
            self._restore()
        if self._at_once is not None:
            self.stop(self._at_once)

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}
