"""Attention of options on their own context, beside that on another item's (section 6.4).

Of every row of the good option, by layer and head: the mass on y, the mass on y without the first
token, and the contribution of y's values to what the layer's attention adds; `cqa.model.
attention_mass` defines them. The same option after another item's context of near length is the
null: attention falls on whatever is there, so only own minus other says anything of the match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from cqa.claims.attention.config import AttentionConfig
from cqa.claims.attention.context import positions_of_context
from cqa.claims.attention.figure import draw_heads
from cqa.claims.attention.heads import AttentionResult
from cqa.claims.attention.rows import AttentionRow, packed
from cqa.claims.attention.summary import NAME, summarised
from cqa.claims.claim import Asked, RowsByModel, Task
from cqa.claims.items import dealt_among, read_all
from cqa.claims.sequences import encode
from cqa.data.items import Item
from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError, NumericsError
from cqa.layout import Tree
from cqa.model.attention_mass import OptionAttention, option_attention
from cqa.schema.claims import StudyResult
from cqa.score.decoder_engine import DecoderEngine
from cqa.score_folder import digest_json, full_key


@dataclass(frozen=True, slots=True)
class _Reading:
    """The good option of an item after a context, and the positions of y in it."""

    tree: Tree
    y: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Readings:
    """After its own context and after another's."""

    own: _Reading
    other: _Reading
    where: str


class Attention:
    """See the module."""

    name = NAME
    row = AttentionRow
    code = (
        "claims/attention", "claims/sequences.py", "claims/dealing.py", "model/attention_mass.py",
        "kernels/attention_mass.py",
    )  # fmt: skip

    def __init__(self, config: AttentionConfig) -> None:
        self._config = config

    def inputs(self) -> Mapping[str, Any]:
        """Return what decides a row besides its task: nothing."""
        return {}

    def tasks(self, tokenizer: Tokenizer, max_positions: int) -> list[Task[Readings]]:
        """Read the items, and deal every context to another one."""
        items = read_all(self._config)
        own = [_reading(item, item.context, tokenizer, max_positions) for item in items]
        lengths = [reading.y[1] - reading.y[0] for reading in own]
        others = dealt_among(
            items, [item.context for item in items], lengths, "contexts",
            "the null control needs them; take items of more sources",
        )  # fmt: skip
        return [
            _task(item, reading, items[other].context, tokenizer, max_positions)
            for item, reading, other in zip(items, own, others, strict=True)
        ]

    @torch.no_grad()
    def compute(
        self, engine: DecoderEngine, tasks: Sequence[Task[Readings]], model: Asked
    ) -> list[AttentionRow]:
        """Look at the good option of each item after both contexts."""
        readings = [r for task in tasks for r in (task.content.own, task.content.other)]
        found = option_attention(
            engine.base.decoder, [r.tree for r in readings], [r.y for r in readings]
        )
        return [
            _row(task, model, found[2 * k][0], found[2 * k + 1][0]) for k, task in enumerate(tasks)
        ]

    def result(self, rows: RowsByModel[AttentionRow]) -> StudyResult:
        """Test own minus other: means over heads, and every head for itself."""
        return summarised(rows)

    def draw(self, rows: RowsByModel[AttentionRow], result: StudyResult) -> Figure:
        """Draw every head's contribution: the base's excess, and what adapters change of it."""
        assert isinstance(result, AttentionResult)
        return draw_heads(
            [
                table
                for table in result.heads
                if table.name == "contribution_head_change"
                or (table.name == "contribution_head" and table.adapter is None)
            ]
        )


def _reading(item: Item, context: str, tokenizer: Tokenizer, max_positions: int) -> _Reading:
    option = item.options[item.answer or 0]
    context_ids, option_ids = encode(tokenizer, context, option, max_positions, item.where)
    y = positions_of_context(tokenizer, context, option, item.where)
    return _Reading(Tree(context_ids, (option_ids,)), y)


def _task(
    item: Item, own: _Reading, context: str, tokenizer: Tokenizer, max_positions: int
) -> Task[Readings]:
    other = _reading(item, context, tokenizer, max_positions)
    return Task(
        id=item.id,
        group=item.group,
        source_id=item.labels.get("source_id"),
        key=digest_json([full_key(item), context]),
        n_tokens=_n_fed(own) + _n_fed(other),
        content=Readings(own, other, item.where),
    )


def _n_fed(reading: _Reading) -> int:
    """Return the tokens of a pass, an option's last one too: it also attends."""
    return len(reading.tree.context) + len(reading.tree.options[0])


def _row(
    task: Task[Readings], model: Asked, own: OptionAttention, other: OptionAttention
) -> AttentionRow:
    forms, readings = (own, other), (task.content.own, task.content.other)
    shares = np.stack([form.shares.numpy() for form in forms])
    if not np.isfinite(shares).all():
        raise NumericsError("expected finite shares of attention, got others")
    ratios = [form.log_ratio.flatten(0, 1).nanmean(0) for form in forms]  # NaN: y is out of sight
    if not all(ratio.isfinite().all() for ratio in ratios):
        raise DataError(
            "expected contexts in sight of their options, got one whose y is beyond the window of "
            "every layer",
            where=task.content.where, hint="shorten the texts",
        )  # fmt: skip
    return AttentionRow(
        **task.labels(model),
        n_layers=shares.shape[1],
        n_heads=shares.shape[2],
        shares_fp32=packed(shares),
        log_ratio_nats=tuple(tuple(ratio.tolist()) for ratio in ratios),
        in_sight=tuple(float(form.in_sight.mean()) for form in forms),
        n_y=tuple(reading.y[1] - reading.y[0] for reading in readings),
        n_fed=task.n_tokens,
    )
