"""Signals: the first is remembered, the second has its usual effect, an ignored one stays so."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cqa.interrupt import Interrupt, Interrupted, continued_by, stopped_at_once


@pytest.fixture(autouse=True)
def _as_in_the_foreground():
    """In the background SIGINT is ignored from the start."""
    with handled(signal.SIGINT, signal.default_int_handler):
        yield


class Ended(BaseException):
    """What the handler of a test raises."""


@contextmanager
def handled(signum: int, handler: object) -> Iterator[None]:
    """Let a signal have this handler for a while."""
    before = signal.signal(signum, handler)
    try:
        yield
    finally:
        signal.signal(signum, before)


def end(signum: int, frame: object) -> None:
    raise Ended


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)
    signal.sigpending()  # a call after which Python runs what is due


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_first_signal_is_remembered_and_ends_the_work_where_it_is_asked_about(signum, code):
    with Interrupt() as interrupt:
        assert interrupt.requested is None
        send(signum)
        assert interrupt.requested == signum
        with pytest.raises(Interrupted, match=r"^all is on disk$") as caught:
            interrupt.stop("all is on disk")
    assert caught.value.exit_code == code


@pytest.mark.parametrize("signum", Interrupt.SIGNALS)
def test_a_signal_ends_what_keeps_nothing_wherever_it_is_and_a_command_continues_it(signum):
    with (
        handled(signum, end),
        pytest.raises(Interrupted, match="stopped in the tests") as caught,
        continued_by("cqa-fast study fit"),
        stopped_at_once("stopped in the tests"),
    ):
        send(signum)
    assert (caught.value.exit_code, caught.value.command) == (128 + signum, "cqa-fast study fit")


@pytest.mark.parametrize("first", Interrupt.SIGNALS)
@pytest.mark.parametrize("second", Interrupt.SIGNALS)
def test_second_signal_has_its_usual_effect_at_once(first, second):
    with handled(second, end), Interrupt() as interrupt:
        send(first)
        with pytest.raises(Ended):
            send(second)
        assert interrupt.requested == first


@pytest.mark.parametrize("signum", Interrupt.SIGNALS)
def test_signal_that_was_ignored_stays_ignored(signum):
    with handled(signum, signal.SIG_IGN), Interrupt() as interrupt:
        send(signum)
        assert interrupt.requested is None


@pytest.mark.parametrize("error", [None, ValueError])
def test_handlers_are_given_back_whatever_happens(error):
    before = [signal.getsignal(s) for s in Interrupt.SIGNALS]
    try:
        with Interrupt():
            assert all(signal.getsignal(s) not in before for s in Interrupt.SIGNALS)
            if error:
                raise error
    except ValueError:
        pass
    assert [signal.getsignal(s) for s in Interrupt.SIGNALS] == before


def test_in_a_thread_signals_are_left_alone():
    seen = []

    def work() -> None:
        before = signal.getsignal(signal.SIGINT)
        with Interrupt() as interrupt:
            seen.append((signal.getsignal(signal.SIGINT) is before, interrupt.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, None)]


def test_what_continues_is_the_outermost_command():
    with (
        pytest.raises(Interrupted, match=r"^stopped\nhint: continue with: outer$"),
        continued_by("outer"),
        continued_by("inner"),
    ):
        raise Interrupted(signal.SIGINT, "stopped")
