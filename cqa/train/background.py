"""Adapters and states written by a thread, from a copy, while training goes on.

One thread writes one after the other in the order in which they are given, each file or folder as
before: complete or not at all. What fails ends the run where the next copy is taken, at the latest
at its end; nothing that was given after it is written, so a state never says more than is there.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from cqa.errors import NumericsError
from cqa.model.lora import TrainableLora
from cqa.schema.events import Eval
from cqa.train.checkpoint import save_epoch, save_state
from cqa.train.plan import Plan
from cqa.train.snapshot import BUFFERS, Snapshot


class Checkpoints:
    """What writes the adapters and states of a run; however it is left, it waits for them.

    What was given is an epoch that the log tells of: a second Ctrl-C does not lose it either.
    """

    def __init__(self, plan: Plan, lora: TrainableLora) -> None:
        """Begin the thread, with memory for one copy."""
        self._plan, self._lora = plan, lora
        self._held = Snapshot(lora)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._given: list[Future[None]] = []
        self._stopped = False  # nothing more is begun

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        self.wait()  # what failed here came before what ends the run now

    def take(self) -> None:
        """Copy the adapter and its state as they are, once the copy before has been written.

        Raises:
            ResourceError: That one could not be written.
        """
        self.wait()
        self._held.take()

    def adapter(self, name: str, eval_loss: Eval | None = None) -> None:
        """Write the copied adapter's folder; see `save_epoch`.

        Raises:
            NumericsError: A parameter is not finite; nothing is written.
        """
        self._require_finite(BUFFERS[:1], f"{name} is not written")
        self._give(lambda: save_epoch(self._plan, self._held, name, eval_loss))

    def state(self, step: int) -> None:
        """Write the copied state, of this step; see `save_state`.

        Raises:
            NumericsError: A parameter or moment is not finite; the last state stays.
        """
        self._require_finite(BUFFERS, "the last complete state is intact")
        self._give(lambda: save_state(self._plan, self._held, step))

    def wait(self) -> None:
        """Wait until all that was given is on disk.

        Raises:
            ResourceError: It could not be written.
        """
        given, self._given = self._given, []
        for job in given:
            job.result()

    def _give(self, write: Callable[[], None]) -> None:
        self._given.append(self._thread.submit(self._written, write))

    def _written(self, write: Callable[[], None]) -> None:
        if self._stopped:
            return
        try:
            self._held.wait()
            write()
        except BaseException:
            self._stopped = True
            raise

    def _require_finite(self, names: tuple[str, ...], consequence: str) -> None:
        """Look at the device's buffers, which no step has changed since they were copied."""
        for name in names:
            if not bool(getattr(self._lora.state, name).isfinite().all()):
                raise NumericsError(
                    f"expected finite numbers in the adapter's {name}, got others; {consequence}",
                    hint="a lower --lr, or a --max-grad-norm",
                )
