"""dI of one row and the two parts of it, as item tables and tidy tables hold them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cqa.schema.row_forms import WrittenRows
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


def block_parts(rows: WrittenRows) -> list[Parts] | list[None]:
    """Return the parts of each of many rows; None for each where they are continuations."""
    if rows.form.n_options == 1:
        return [None] * len(rows)
    given = rows.by_text("logp_given_context_nats").tolist()
    shares = (softmax(pair)[k] for pair, k in zip(given, right_numbers(rows), strict=True))
    return list(map(Parts, *block_contrasts(rows).T.tolist(), shares))


def block_contrasts(rows: WrittenRows) -> npt.NDArray[np.float64]:
    """Return the first three of `Parts` of rows of pairs: (rows, 3)."""
    right = right_numbers(rows)
    values = (rows.by_text(name) for name in ("logp_given_context_nats", "logp_null_nats"))
    contrasts = (of_text(v, right) - of_text(v, 1 - right) for v in values)
    return np.stack([rows.numbers("delta_i_nats"), *contrasts], axis=1)


def right_numbers(rows: WrittenRows) -> npt.NDArray[np.intp]:
    """Return which text is the right one; of a continuation the only one: (rows,)."""
    return np.nan_to_num(rows.numbers("answer")).astype(np.intp)


def of_text(
    values: npt.NDArray[np.float64], number: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64]:
    """Return the value of one text of each row: (rows,) of (rows, texts)."""
    found: npt.NDArray[np.float64] = np.take_along_axis(values, number[:, None], axis=1)[:, 0]
    return found
