"""Contexts of other items, after which an option's mean probability estimates P(x) itself.

    ln P(x) ≈ ln (1/K) sum_j P(x | y_j)          y_j: the contexts of K other items of the group

In place of the second null context (`--null2 marginal:K`): what the context of an item says beyond
what any context of its kind says. One draw serves a whole group: an item takes the first K of it
that are of other sources and other texts than its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from cqa.data.items import Item
from cqa.data.tokenizer import Ids, Tokenizer
from cqa.errors import DataError
from cqa.score.marginal import Marginal
from cqa.score_folder import digest_json

SPARE = 2  # an item shares its source with one context of a draw at most, and its text with one
KEPT_TIMES = 8  # what is held while reading, in units of what is drawn


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A context with what decides its place in the draw."""

    place: str  # digest of seed and text
    source: str
    text: str
    ids: Ids


@dataclass(slots=True)
class OtherContexts:
    """The contexts that every group's items are scored after; see `drawn_contexts`."""

    marginal: Marginal
    by_group: dict[tuple[str, str], list[_Drawn]] = field(default_factory=dict)

    def of(self, item: Item) -> tuple[Ids, ...]:
        """Return the ids of K contexts of an item's group, of other sources and texts.

        Raises:
            DataError: The group has too few.
        """
        drawn = self.by_group.get(_group(item), [])
        own = _source(item)
        found = [one.ids for one in drawn if one.source != own and one.text != item.context]
        if len(found) < self.marginal.n_contexts:
            raise DataError(
                f"expected {self.marginal.n_contexts} contexts of other sources in group "
                f"`{item.group}` for item `{item.id}`, got {len(found)}",
                where=item.where,
                hint=f"--null2 marginal:{len(found)}, or newline" if found else "--null2 newline",
            )
        return tuple(found[: self.marginal.n_contexts])

    @property
    def digest(self) -> str:
        """What stands for the contexts in the key of a model: another draw is another score."""
        drawn = [[group, [one.text for one in held]] for group, held in self.by_group.items()]
        return digest_json([self.marginal.n_contexts, sorted(drawn)])


def drawn_contexts(
    items: Iterable[Item], tokenizer: Tokenizer, marginal: Marginal, *, fits: Callable[[Ids], bool]
) -> OtherContexts:
    """Draw the contexts of each group from its items, read once.

    Which are drawn depends on the seed and on the texts, not on the order of the items: each text
    has a digest with the seed, and the smallest are taken, one of a source.

    Args:
        items: All items of the job, those of other shards too.
        tokenizer: What encodes them.
        marginal: How many an item takes, and the seed.
        fits: Whether the model has room for a context's ids.
    """
    best: dict[tuple[str, str], dict[str, tuple[str, Item]]] = {}
    n_wanted = marginal.n_contexts + SPARE
    for item in items:
        held = best.setdefault(_group(item), {})
        source, one = _source(item), (_place(marginal.seed, item.context), item)
        if source not in held or one[0] < held[source][0]:
            held[source] = one
        if len(held) > KEPT_TIMES * n_wanted:
            best[_group(item)] = _smallest(held, n_wanted * KEPT_TIMES // 2)
    found = OtherContexts(marginal)
    for group, held in best.items():
        encoded = (_encoded(one, source, tokenizer) for source, one in _ordered(held))
        kept = [one for one in encoded if one is not None and fits(one.ids)]
        texts = {one.text: one for one in reversed(kept)}  # the first of a text
        found.by_group[group] = [one for one in kept if texts[one.text] is one][:n_wanted]
    return found


def _group(item: Item) -> tuple[str, str]:
    return item.group, "continuation" if item.kind == "continuation" else "pair"


def _source(item: Item) -> str:
    """Return what an item shares with those it is not independent of, as the statistics see it."""
    source = item.labels.get("source_id")
    return digest_json(["source", source] if source else ["item", item.context])


def _place(seed: int, context: str) -> str:
    return hashlib.sha256(f"{seed}\n{context}".encode()).hexdigest()


def _ordered(held: Mapping[str, tuple[str, Item]]) -> list[tuple[str, tuple[str, Item]]]:
    return sorted(held.items(), key=lambda pair: (pair[1][0], pair[0]))


def _smallest(held: Mapping[str, tuple[str, Item]], n: int) -> dict[str, tuple[str, Item]]:
    return dict(_ordered(held)[:n])


def _encoded(one: tuple[str, Item], source: str, tokenizer: Tokenizer) -> _Drawn | None:
    """Return a context as ids; None where it cannot be one, as its own item will say."""
    place, item = one
    try:
        tokenizer.refuse_special(item.context, item.where)
        text = tokenizer.render_context(item.context, item.options[0], item.where)
        ids = tokenizer.encode_context(text)
        tokenizer.check_round_trip(text, ids, item.where)
    except DataError:
        return None
    return _Drawn(place, source, item.context, ids) if ids else None
