"""A training run's events as scalars for TensorBoard, in `tensorboard` within its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cqa.errors import ConfigError
from cqa.schema.events import Dev, Eval, Step, TrainEvent, TrainStart


class TensorBoard:
    """Takes events of `cqa.train.loop.train`; axes are steps, units stand in the names.

    A resumed run goes on in the same curves: what was written past the step it starts from is
    hidden.
    """

    def __init__(self, out: Path) -> None:
        """Find the writer.

        Args:
            out: The run's folder.

        Raises:
            ConfigError: tensorboard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "expected tensorboard for --tensorboard, got none",
                hint="pip install 'cqa-fast[tensorboard]'",
            ) from None
        self._writer_class: Any = SummaryWriter
        self._folder = out / "tensorboard"
        self._writer: Any = None

    def __call__(self, event: TrainEvent) -> None:
        """Take one event."""
        match event:
            case TrainStart(step=step):
                self._writer = self._writer_class(str(self._folder), purge_step=step + 1)
            case Step(step=step):
                self._add("train/loss_nats", event.loss_nats, step)
                self._add("train/lr", event.lr, step)
                self._add("train/grad_norm", event.grad_norm, step)
                self._add("train/tokens_per_s", event.tokens_per_s, step)
            case Eval():
                self._add("eval/eval_loss_nats", event.eval_loss_nats, event.step)
            case Dev():
                step = event.step or 0
                self._add(f"dev/{event.group}/mean_ddi_nats", event.mean_ddi_nats, step)
                self._add(f"dev/{event.group}/mean_delta_i_nats", event.mean_delta_i_nats, step)

    def close(self) -> None:
        """Write out what is waiting."""
        if self._writer is not None:
            self._writer.close()

    def _add(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)
