"""The items that an engine could not score: without rows, out of every number, and named."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cqa.data.items import Item
from cqa.errors import ModelError
from cqa.schema.meta import Unscored
from cqa.score.encoded import first_named
from cqa.score.results import ItemsHeld
from cqa.score_folder import META
from cqa.text import named


@dataclass(slots=True)
class UnscoredItems:
    """Those of one run, under the base or any adapter."""

    by_id: dict[str, Unscored] = field(default_factory=dict)

    def add(self, item: Item, reason: str) -> None:
        """Take an item, and why it has no score."""
        self.by_id[item.id] = Unscored(group=item.group, reason=reason)

    def refuse_all(self, held: ItemsHeld, where: str) -> None:
        """Refuse to end a run that scored nothing.

        Raises:
            ModelError: No item has a score.
        """
        if self.by_id and len(self.by_id) == held.n_items:
            first, why = next(iter(self.by_id.items()))
            raise ModelError(
                f"expected scores, got none for all {held.n_items} items; `{first}`: {why.reason}",
                where=where,
            )

    def note(self) -> str:
        """Say how many of each group there are, and why the first is one; there is one at least."""
        first, why = next(iter(self.by_id.items()))
        counts = Counter(one.group for one in self.by_id.values())
        said = ", ".join(f"{n} {named(group)}" for group, n in counts.items())
        return (
            f"left out, could not be scored: {said} {first_named(self.by_id, META)}; "
            f"`{named(first)}`: {why.reason}. The same command tries them again"
        )
