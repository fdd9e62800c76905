"""The deciding test of true continuations, and of the parts of a group: Table 2 over sources."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np

from cqa.stats.clusters import by_source
from cqa.stats.continuations import TextScore
from cqa.stats.deciding import Change, family_test

Texts = Mapping[str | None, Mapping[str, TextScore]]


def text_changes(
    models: Texts, candidates: Collection[str], label: Literal["domain", "lang"] = "domain"
) -> dict[str, dict[str | None, Change]]:
    """Test the change of log P per token under each candidate that scored every text of the base.

    Args:
        models: The scores of one group.
        candidates: The adapters that the tests pay for.
        label: What the parts are.

    Returns:
        By adapter and domain or language (None is the whole group); each part is a family over its
        adapters, with sources as units.
    """
    base = models[None]
    labels = {i: score.domain if label == "domain" else score.lang for i, score in base.items()}
    found: dict[str, dict[str | None, Change]] = {}
    for part in (None, *sorted({name for name in labels.values() if name is not None})):
        ids = [i for i in base if part is None or labels[i] == part]
        before = np.array([base[i].logp_nats / base[i].n_tokens for i in ids])
        moved = {
            name: np.array([scores[i].logp_nats / scores[i].n_tokens for i in ids]) - before
            for name, scores in models.items()
            if name in candidates and name is not None and scores.keys() >= base.keys()
        }
        if not moved:
            return {}
        family = family_test(by_source(moved, [base[i].source_id for i in ids]))
        for name, change in family.changes.items():
            found.setdefault(name, {})[part] = change
    return found


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return p corrected for having asked several questions; what was not tested stays None.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted((value, k) for k, value in enumerate(p) if value is not None)
    found: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, k) in enumerate(order):
        largest = max(largest, min(1.0, value * (len(order) - rank)))
        found[k] = largest
    return found
