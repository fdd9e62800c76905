"""The task's own metric during training: mean ddI on a file of pairs after every epoch (§6.6).

It is logged beside eval_loss and, like it, selects nothing: an epoch chosen by it on the items that
are then reported would be chosen on the test set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cqa.data.items import read_items
from cqa.data.tokenizer import Tokenizer
from cqa.data.unique import each_once, file_line_id
from cqa.interrupt import continued_by
from cqa.model.checkpoint import locate
from cqa.model.config import read_config
from cqa.model.decoder import Decoder
from cqa.ranks import Ranks, joined, launched, relaunched, require_several
from cqa.run_folder import RUN
from cqa.schema.events import Dev, Note, TrainEvent
from cqa.schema.rows import ItemRow
from cqa.score.decoder_engine import run_prefix_batch
from cqa.score.prefix_batch import encode_item
from cqa.score.scorer import score_rows
from cqa.stats.summary import Scores, summarise
from cqa.study.config import CallbackTrainConfig
from cqa.study.tensorboard import TensorBoard
from cqa.train.config import TrainConfig
from cqa.train.loop import TrainResult, train
from cqa.train.same_run import resume_command

LOGGED = (
    "n", "mean_delta_i_base_nats", "mean_delta_i_nats", "mean_ddi_nats", "ci95_nats", "d_z",
)  # fmt: skip


class DevMetric:
    """A callback of the training loop: mean ddI of the model in training against its base.

    Items are scored as `score` does by default, with the run's template. Before the first step the
    adapter's B is zero, so the model is then the base (but for the rounding of a few zeros).
    """

    def __init__(self, config: TrainConfig, pairs: Path) -> None:
        """Read and encode the items.

        Args:
            config: The run's settings.
            pairs: The items.

        Raises:
            CqaError: The file is malformed, or an item does not fit the model.
        """
        folder = locate(config.model)
        positions = read_config(folder).max_positions
        self._tokenizer = Tokenizer(
            folder, template=config.template, allow_special=config.allow_special
        )
        self._items = [
            encode_item(item, self._tokenizer, "split", score_eos=False, max_positions=positions)
            for item in each_once(
                read_items([pairs], columns=config.columns),
                name=file_line_id,
                columns=config.columns,
            )
        ]
        self._base: list[ItemRow] = []

    def begin(self, decoder: Decoder) -> None:
        """Score the base."""
        self._base = self._rows(decoder, None)

    def after_epoch(self, decoder: Decoder, epoch: int) -> Iterator[Dev]:
        """Yield one event per group of items."""
        started = time.perf_counter()
        rows = self._rows(decoder, "now")
        groups = summarise(Scores([*self._base, *rows])).groups
        seconds = round(time.perf_counter() - started, 6)
        for group, models in groups.items():
            entry = {key: value for key, value in models["now"].to_json().items() if key in LOGGED}
            yield Dev(epoch=epoch, group=group, **entry, dev_s=seconds)

    def _rows(self, decoder: Decoder, name: str | None) -> list[ItemRow]:
        passes = score_rows(
            partial(run_prefix_batch, decoder),
            self._items,
            self._tokenizer,
            batch_tokens=decoder.pass_rows,
            adapter=name,
        )
        return [row for rows, _ in passes for row in rows]


def train_with_callbacks(
    config: CallbackTrainConfig,
    *,
    resume: bool = False,
    on_event: Callable[[TrainEvent], None] = lambda _: None,
) -> TrainResult:
    """Train as `cqa.train.loop.train` does, with what `config` adds.

    That is mean ddI on the pairs of `dev` after every epoch, and curves for TensorBoard. Started by
    torchrun, the processes share the run; rank 0 has the events.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    command = resume_command(config.out)
    if config.shard_base:
        require_several(launched()[1])
        command = relaunched(command)
    with continued_by(command), joined(config.device, config.out, command) as ranks:
        return _train(config, ranks, resume, on_event if ranks.leads else lambda _: None)


def _train(
    config: CallbackTrainConfig,
    ranks: Ranks,
    resume: bool,
    on_event: Callable[[TrainEvent], None],
) -> TrainResult:
    if resume and not (config.out / RUN).exists():
        on_event(Note(text=f"no run in {config.out} yet: a new one begins there"))
    board = TensorBoard(config.out) if config.tensorboard and ranks.leads else None
    looks = ranks.leads or config.shard_base  # a pass of a base that is spread is all ranks'
    metric = DevMetric(config, config.dev) if config.dev and looks else None

    def tell(event: TrainEvent) -> None:
        if board is not None:
            board(event)
        on_event(event)

    try:
        return train(
            config, resume=resume, callback=metric, ranks=ranks, shard_base=config.shard_base,
            on_event=tell,
        )  # fmt: skip
    finally:
        if board is not None:
            board.close()
