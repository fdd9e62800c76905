"""The processes that share a training run, as torchrun starts them; one alone is a run by itself.

Every rank holds the base, the adapter and the optimizer's state, takes its part of each window's
samples, and takes the same step after one sum of the flat gradient over all. Rank 0 alone writes,
and tells what happens. Of an error that several have, one tells.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from cqa.errors import ConfigError, CqaError, ResourceError, ToldElsewhereError
from cqa.interrupt import Interrupt

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from cqa.data.samples import EncodedSample

T = TypeVar("T")
_SILENCE = timedelta(hours=2)  # after which a rank that says nothing counts as lost
_TELLS_WITHIN = timedelta(seconds=60)
_FIRST_ENDS_WITHIN_S = 30.0
_FIRST_TELLS_S = 1.0  # what the others wait, so that rank 0 tells what all have seen


def launched() -> tuple[int, int]:
    """Return rank and number of ranks as torchrun and the like set them; alone it is 0 of 1."""
    found = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE")]
    if "MASTER_ADDR" in os.environ and all(text.isdecimal() for text in found):
        rank, count = map(int, found)
        if rank < count:
            return rank, count
    return 0, 1


def require_several(count: int) -> None:
    """Refuse to spread a base over one process.

    Raises:
        ConfigError: It is one.
    """
    if count == 1:
        raise ConfigError(
            "expected several processes with --shard-base, got one",
            hint="start them by torchrun --nproc-per-node N -m -- cqa_fast …, or leave it out",
        )


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among those of a run."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one writes and tells."""
        return self.rank == 0

    def share(self, samples: Sequence[EncodedSample]) -> tuple[Sequence[EncodedSample], int]:
        """Return this rank's samples, which follow each other, and the number of their first row.

        The largest number of tokens that a rank gets is the least possible for such parts; a rank
        may get none.
        """
        if self.count == 1:
            return samples, 0
        lengths = [len(sample.ids) for sample in samples]
        first, end = parts(lengths, self.count)[self.rank]
        return samples[first:end], sum(lengths[:first])

    def add_up(self, values: Tensor) -> None:
        """Put in the place of values their sum over all ranks."""
        if self.count > 1:
            with lost(self.count):
                _distributed().all_reduce(values)

    def largest(self, value: int) -> int:
        """Return the largest of all ranks' values."""
        if self.count == 1:
            return value
        import torch

        held = torch.tensor(value)
        dist = _distributed()
        with lost(self.count):
            dist.all_reduce(held, op=dist.ReduceOp.MAX)
        return int(held)

    def from_first(self, value: T) -> T:
        """Return what rank 0 gives."""
        if self.count == 1:
            return value
        held = [value]
        with lost(self.count):
            _distributed().broadcast_object_list(held, src=0)
        return held[0]

    def to_first(self, value: T) -> list[T]:
        """Return every rank's value on rank 0, by rank; elsewhere nothing."""
        if self.count == 1:
            return [value]
        held: list[Any] | None = [None] * self.count if self.leads else None
        with lost(self.count):
            _distributed().gather_object(value, held)
        return held or []

    def take_over(self, values: Tensor) -> None:
        """Put in the place of values those of rank 0."""
        if self.count > 1:
            with lost(self.count):
                _distributed().broadcast(values, src=0)

    def require_same(self, what: str, value: str) -> None:
        """Refuse ranks that have not the same of something, on all of them.

        Raises:
            ConfigError: They have not.
        """
        if self.count == 1:
            return
        held = [value] * self.count
        with lost(self.count):
            _distributed().all_gather_object(held, value)
        for rank, other in enumerate(held):
            if other != held[0]:
                raise ConfigError(
                    f"expected the same {what} on every rank, got {other:.16} on rank {rank} and "
                    f"{held[0]:.16} on rank 0"
                )


ALONE = Ranks()


def parts(lengths: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Cut a sequence into at most `count` runs whose largest sum is the least possible.

    Returns:
        First and end of each run; the last ones may be empty.
    """
    low, high = max(lengths, default=0), sum(lengths)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_runs(lengths, middle)) <= count else (middle + 1, high)
    runs = _runs(lengths, low)
    return runs + [(len(lengths), len(lengths))] * (count - len(runs))


def _runs(lengths: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Cut a sequence into runs of sums up to `most`, each as long as it can be."""
    firsts: list[int] = []
    room = -1
    for k, length in enumerate(lengths):
        if length > room:
            firsts.append(k)
            room = most
        room -= length
    return list(pairwise((*firsts, len(lengths))))


@contextmanager
def joined(device: str, out: Path, command: str) -> Iterator[Ranks]:
    """Join the other ranks of a run, if this process was started as one of several.

    Args:
        device: The setting `device`.
        out: The run's folder, for messages.
        command: What continues the run.

    Raises:
        ToldElsewhereError: Another rank has told, or tells, what ended the run.
        ResourceError: A rank was lost.
    """
    rank, count = launched()
    if count == 1:
        yield ALONE
        return
    import torch

    dist = _distributed()
    on_cuda = device != "cpu" and torch.cuda.is_available()
    if on_cuda:
        local = int(os.environ.get("LOCAL_RANK", rank))
        torch.cuda.set_device(local % torch.cuda.device_count())
    store: Any = None
    try:
        with lost(count):
            store, _, _ = next(dist.rendezvous("env://", timeout=_SILENCE))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
                store=dist.PrefixStore("cqa", store), rank=rank, world_size=count,
                timeout=_SILENCE,
            )  # fmt: skip
        yield Ranks(rank, count)
        with lost(count):
            dist.barrier()
    except CqaError as error:
        with Interrupt():  # the launcher ends the others as soon as one has ended
            if not _tells(store, rank):
                _wait_until_told(store)
                raise ToldElsewhereError(error) from None
        error.is_ours_to_tell = True
        if isinstance(error, LostRankError):
            error.where, error.command = str(out), command
            one = "" if command.startswith("torchrun ") else "in one process or "
            error.hint = f"continue, {one}by torchrun in any number of them, with"
        raise
    finally:
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()


def relaunched(command: str) -> str:
    """Spell a command of this program as torchrun starts it in as many processes as here."""
    # what follows -- is not for torchrun, which would take --run for an option of its own
    return f"torchrun --nproc-per-node {launched()[1]} -m -- cqa_fast {command.partition(' ')[2]}"


def let_first_tell() -> None:
    """Wait, on any rank but the first, for rank 0 to tell what went wrong before the ranks met.

    The launcher ends all as soon as one has ended, which ends the wait; were it not ended, rank 0
    would have nothing to tell.
    """
    if launched()[0]:
        time.sleep(_FIRST_ENDS_WITHIN_S)


def _tells(store: Any, rank: int) -> bool:
    """Return whether this rank is the first of those with something to tell."""
    if rank:
        time.sleep(_FIRST_TELLS_S)
    if store is None:
        return True
    try:
        first = bool(store.add("tells", 1) == 1)
    except RuntimeError:  # the store has gone with the process that held it
        return rank == 0
    if first:
        atexit.register(_say_told, store)
    return first


def _say_told(store: Any) -> None:
    """Let the other ranks end: what this one has to tell is printed by now."""
    with suppress(RuntimeError):
        store.set("told", "1")


def _wait_until_told(store: Any) -> None:
    """Wait for the rank that tells, which the launcher would end as soon as this one has ended."""
    with suppress(RuntimeError):  # too long, or the store has gone with the rank that told
        store.wait(["told"], _TELLS_WITHIN)


class LostRankError(ResourceError):
    """Another rank has ended, or cannot be reached."""


@contextmanager
def lost(count: int) -> Iterator[None]:
    """Name what the library says where another rank cannot be reached.

    Raises:
        LostRankError: In the place of a `RuntimeError` of the body.
    """
    try:
        yield
    except RuntimeError as error:
        line = str(error).partition("\n")[0].rpartition("] ")[2]
        reason = line.partition(". ")[0] or type(error).__name__
        raise LostRankError(
            f"expected all {count} ranks to go on, got one that ended or cannot be reached "
            f"({reason:.120})"
        ) from error


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed
