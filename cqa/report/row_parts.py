"""dI of one row and the two parts of it, as item tables and tidy tables hold them."""

from __future__ import annotations

from typing import NamedTuple

from cqa.schema.rows import ItemRow, OptionScore
from cqa.stats.information import contrast, softmax


class Parts(NamedTuple):
    """dI of an item under one model, S(right) - mean S(wrong) after y and after ∅, and p right."""

    delta_i_nats: float
    conditional_nats: float
    prior_nats: float
    p_right: float  # share of the right option in the softmax of S(x|y) over the candidates


def parts_of(row: ItemRow) -> Parts | None:
    """Return the parts of a row; None for a continuation, which has no right option."""
    if row.answer is None or row.delta_i_nats is None:
        return None
    given = [option.logp_given_context_nats for option in row.options]
    return Parts(
        row.delta_i_nats,
        contrast(given, row.answer),
        contrast([option.logp_null_nats for option in row.options], row.answer),
        softmax(given)[row.answer],
    )


def right_option(row: ItemRow) -> OptionScore:
    """Return the right option; of a continuation the only one."""
    return row.options[row.answer or 0]
