"""A few calls at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(call: Callable[[T], R], arguments: Sequence[T], n_at_a_time: int) -> list[R]:
    """Return what a call gives for each argument, in their order.

    After a call that raises none is begun; that of the earliest argument is raised once the others
    have ended. A signal ends the wait at once: the threads do not keep the process alive.
    """
    results: dict[int, R] = {}
    failures: dict[int, BaseException] = {}
    waiting = iter(range(len(arguments)))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                place = None if failures else next(waiting, None)
            if place is None:
                return
            try:
                results[place] = call(arguments[place])
            except BaseException as error:
                failures[place] = error

    threads = [
        threading.Thread(target=work, daemon=True) for _ in range(min(n_at_a_time, len(arguments)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[min(failures)]
    return [results[place] for place in range(len(arguments))]
