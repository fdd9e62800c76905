"""Parts of a group of pairs, by domain, language or date: each tested as the group is."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from cqa.stats.clusters import by_source
from cqa.stats.columns import Facts
from cqa.stats.deciding import Change, family_test
from cqa.stats.verdict import ByModel, changes_of


def changes_by_part(
    models: ByModel,
    facts: Facts,
    parts: Sequence[str | None],
    candidates: Collection[str],
) -> dict[str, dict[str, Change]]:
    """Test the mean ddI of each part under each adapter that scored every item of the base.

    Args:
        models: The scores of one group.
        facts: What is known of its items.
        parts: The part of each item of the base, in its order; None is in no part.
        candidates: The adapters that the tests pay for.

    Returns:
        By part and adapter; each part is a family over its adapters, with sources as units.
    """
    changes = changes_of("", models, facts)
    kept = [name for name in candidates if changes is not None and name in changes.ddi]
    if changes is None or not kept:
        return {}
    of_item = np.array([part or "" for part in parts])
    found = {}
    for part in sorted({part for part in parts if part}):
        places = np.flatnonzero(of_item == part)
        sources = [changes.sources[k] for k in places.tolist()]
        moved = {name: changes.ddi[name][places] for name in kept}
        found[part] = family_test(by_source(moved, sources)).changes
    return found
