"""Rows of pairs and continuations, many at once: what the statistics need of each, as columns.

The numbers are those of `item_score`, `item_facts` and `text_score` to the last bit; tests compare.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cqa.schema.row_forms import WrittenRows
from cqa.stats.contamination import min_k_percent
from cqa.stats.continuations import TextScore
from cqa.stats.items import LENGTHS, OF_PMI, ItemFacts

Values = npt.NDArray[np.float64]
Column = str | tuple[str, int]  # a field of `ItemScore`, and which of its numbers


class _Pairs:
    """The texts of pairs by which of the two is right."""

    def __init__(self, rows: WrittenRows) -> None:
        right = rows.numbers("answer").astype(np.intp)
        self.rows, self.right = rows, right
        self._order = np.stack([right, 1 - right], axis=1)

    def of(self, name: str) -> Values:
        """Return a field of both texts: (rows, 2), that of the right one first."""
        found: Values = np.take_along_axis(self.rows.by_text(name), self._order, axis=1)
        return found


def _contrast(values: Values) -> Values:
    found: Values = values[:, 0] - values[:, 1]
    return found


def pair_columns(rows: WrittenRows) -> dict[Column, Values]:
    """Return every number of `ItemScore` that a pair has: (rows,) each; NaN for None."""
    pairs = _Pairs(rows)
    given, null, pmi = (pairs.of(f"{n}_nats") for n in ("logp_given_context", "logp_null", "pmi"))
    pmi2 = given - pairs.of("logp_null2_nats")
    lengths = [pairs.of(name) for name in LENGTHS]
    n_tokens = lengths[LENGTHS.index("n_tokens")].sum(axis=1)
    delta_i = rows.numbers("delta_i_nats")
    best = _contrast(pmi)
    columns: dict[Column, Values] = {
        "logp_nats": given[:, 0],
        "delta_i_nats": delta_i,
        "conditional_nats": _contrast(given),
        "prior_nats": _contrast(null),
        "entropy_given_nats": rows.by_text("entropy_given_context_nats").sum(axis=1) / n_tokens,
        "entropy_null_nats": rows.by_text("entropy_null_nats").sum(axis=1) / n_tokens,
        "is_first": _is_first(given, pairs.right),
        "is_first_per_byte": _is_first(given / lengths[LENGTHS.index("n_bytes")], pairs.right),
        "delta_i_null2_nats": _contrast(pmi2),
        "min_k": _min_k(rows, pairs.right),
        ("variants", OF_PMI.index("best_wrong")): np.where(best == delta_i, np.nan, best),
    }
    for k, length in enumerate(lengths):
        columns["variants", k] = _contrast(pmi / length)
    for k in range(2):
        columns["null2_lengths", k] = _contrast(pmi2 / lengths[k])
    return columns


def _is_first(values: Values, right: npt.NDArray[np.intp]) -> Values:
    """Whether the right text has the larger value; of two equal ones the first in the file."""
    found = (values[:, 0] > values[:, 1]) | ((values[:, 0] == values[:, 1]) & (right == 0))
    return np.asarray(found, dtype=np.float64)


def _min_k(rows: WrittenRows, right: npt.NDArray[np.intp]) -> Values:
    if not rows.form.tokens:
        return np.full(len(rows), np.nan)
    tokens = [rows.arrays("token_logp_null_nats", k) for k in range(2)]
    return np.array([min_k_percent(tokens[k][row]) for row, k in enumerate(right)])


def pair_facts(rows: WrittenRows) -> Iterator[ItemFacts]:
    """Return what each row says of its item."""
    lengths = pair_lengths(rows)
    return map(
        ItemFacts,
        rows.texts("domain"),
        rows.texts("source_id"),
        rows.texts("published_at"),
        map(tuple, lengths[:, 0].astype(int).tolist()),
        map(tuple, lengths[:, 1].tolist()),
        pair_merges(rows).tolist(),
        rows.texts("lang"),
        rows.texts("kind"),
    )


def pair_lengths(rows: WrittenRows) -> Values:
    """Return how long the texts of each pair are: (rows, 2, units of LENGTHS), the right first."""
    pairs = _Pairs(rows)
    return np.stack([pairs.of(name) for name in LENGTHS], axis=2)


def pair_merges(rows: WrittenRows) -> npt.NDArray[np.bool_]:
    """Return whether a text of each pair has a boundary merge: (rows,)."""
    found: npt.NDArray[np.bool_] = np.any([rows.flags("boundary_merge", k) for k in (0, 1)], axis=0)
    return found


def text_scores(rows: WrittenRows) -> Iterator[TextScore]:
    """Return what the statistics need of rows of continuations."""
    return map(
        TextScore,
        rows.numbers("logp_given_context_nats", 0).tolist(),
        rows.numbers_or_none("entropy_given_context_nats", 0),
        map(int, rows.pieces("n_tokens", 0)),
        map(int, rows.pieces("n_bytes", 0)),
        rows.texts("domain"),
        rows.texts("source_id"),
        rows.texts("published_at"),
        rows.texts("lang"),
        rows.flags("boundary_merge", 0).tolist(),
    )
