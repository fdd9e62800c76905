"""dI of one row and the two parts of it, as tidy tables hold them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cqa.schema.row_forms import WrittenRows
from cqa.schema.rows import ItemRow
from cqa.stats.information import contrast


def contrasts_of(row: ItemRow) -> tuple[float, float, float] | None:
    """Return dI, S(right) - mean S(wrong) after y and after ∅; None for a continuation."""
    if row.answer is None or row.delta_i_nats is None:
        return None
    return (
        row.delta_i_nats,
        contrast([option.logp_given_context_nats for option in row.options], row.answer),
        contrast([option.logp_null_nats for option in row.options], row.answer),
    )


def block_contrasts(rows: WrittenRows) -> npt.NDArray[np.float64]:
    """Return the same of rows of pairs: (rows, 3)."""
    right = rows.numbers("answer").astype(np.intp)
    values = (rows.by_text(name) for name in ("logp_given_context_nats", "logp_null_nats"))
    contrasts = (_of_text(v, right) - _of_text(v, 1 - right) for v in values)
    return np.stack([rows.numbers("delta_i_nats"), *contrasts], axis=1)


def _of_text(
    values: npt.NDArray[np.float64], number: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64]:
    """Return the value of one text of each row: (rows,) of (rows, texts)."""
    found: npt.NDArray[np.float64] = np.take_along_axis(values, number[:, None], axis=1)[:, 0]
    return found
