"""Contexts of other items, after which an option's mean probability estimates P(x) itself.

    ln P(x) ≈ ln (1/K) sum_j P(x | y_j)          y_j: the contexts of K other items of the group

In place of the second null context (`--null2 marginal:K`): what the context of an item says beyond
what any context of its kind says. One draw serves a whole group: an item takes the first K of it
that are of other sources and other texts than its own. Groups of several languages have a draw for
each: after a context of another language no text is probable.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cqa.data.items import Item
from cqa.data.tokenizer import Ids, Tokenizer
from cqa.errors import DataError
from cqa.score.marginal import Marginal
from cqa.score_folder import digest_json

SPARE = 2  # an item shares its source with one context of a draw at most, and its text with one
OF_A_TEXT = 2  # sources of one text that are held, where more have it
KEPT_TIMES = 8  # what is held while reading, in units of what is drawn


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A context with what decides its place in the draw."""

    place: str  # digest of seed and text
    source: str
    text: str
    ids: Ids


Group = tuple[str, str, str]  # its name, whether it is of pairs or of continuations, the language


@dataclass(slots=True)
class OtherContexts:
    """The contexts that every group's items are scored after; see `drawn_contexts`."""

    marginal: Marginal
    by_group: dict[Group, list[_Drawn]] = field(default_factory=dict)

    def of(self, item: Item) -> tuple[Ids, ...]:
        """Return the ids of K contexts of an item's group, of other sources and texts.

        Raises:
            DataError: The group has too few.
        """
        drawn = self.by_group.get(_group(item), [])
        own = _source(item)
        found = [one.ids for one in drawn if one.source != own and one.text != item.context]
        if len(found) < self.marginal.n_contexts:
            of_lang = f" and language `{lang}`" if (lang := item.labels.get("lang")) else ""
            raise DataError(
                f"expected {self.marginal.n_contexts} contexts of other sources in group "
                f"`{item.group}`{of_lang} for item `{item.id}`, got {len(found)}",
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
    best: dict[Group, _Smallest] = {}
    n_wanted = marginal.n_contexts + SPARE
    for item in items:
        held = best.setdefault(_group(item), _Smallest(n_wanted))
        place, source = _place(marginal.seed, item.context), _source(item)
        if held.wants(place, source):
            drawn = _encoded(place, source, item, tokenizer)
            if drawn is not None and fits(drawn.ids):
                held.add(drawn)
    return OtherContexts(marginal, {group: held.drawn() for group, held in best.items()})


class _Smallest:
    """The contexts of a group with the smallest places, one of a source and one of a text.

    Only such as can be contexts are held, so that what is dropped is never missed.
    """

    def __init__(self, n_wanted: int) -> None:
        self._n_wanted = n_wanted
        self._best: dict[str, _Drawn] = {}  # by source
        self._last: str | None = None  # no place beyond it is wanted

    def wants(self, place: str, source: str) -> bool:
        """Say whether a context of this place could be drawn."""
        held = self._best.get(source)
        if held is not None and held.place <= place:
            return False
        return self._last is None or place <= self._last

    def add(self, one: _Drawn) -> None:
        """Hold a context that is wanted."""
        self._best[one.source] = one
        if len(self._best) > KEPT_TIMES * self._n_wanted:
            self._drop()

    def _drop(self) -> None:
        """Drop what is not drawn even if most of what is held gives way to others."""
        n_texts, n_sources = KEPT_TIMES // 2 - 1, Counter[str]()  # of a text
        kept: dict[str, _Drawn] = {}
        for one in self._in_order():
            if one.text not in n_sources and len(n_sources) == n_texts * self._n_wanted:
                self._last = max(held.place for held in kept.values())
                break
            n_sources[one.text] += 1
            if n_sources[one.text] <= OF_A_TEXT:
                kept[one.source] = one
        self._best = kept

    def _in_order(self) -> list[_Drawn]:
        return sorted(self._best.values(), key=lambda one: (one.place, one.source))

    def drawn(self) -> list[_Drawn]:
        """Return as many as are wanted, if there are so many, in the order of their places."""
        ordered = self._in_order()
        texts = {one.text: one for one in reversed(ordered)}  # the first of a text
        return [one for one in ordered if texts[one.text] is one][: self._n_wanted]


def _group(item: Item) -> Group:
    kind = "continuation" if item.kind == "continuation" else "pair"
    return item.group, kind, item.labels.get("lang") or ""


def _source(item: Item) -> str:
    """Return what an item shares with those it is not independent of, as the statistics see it."""
    source = item.labels.get("source_id")
    return digest_json(["source", source] if source else ["item", item.context])


def _place(seed: int, context: str) -> str:
    return hashlib.sha256(f"{seed}\n{context}".encode()).hexdigest()


def _encoded(place: str, source: str, item: Item, tokenizer: Tokenizer) -> _Drawn | None:
    """Return a context as ids; None where it cannot be one, as its own item will say."""
    try:
        tokenizer.refuse_special(item.context, item.where)
        text = tokenizer.render_context(item.context, item.options[0], item.where)
        ids = tokenizer.encode_context(text)
        tokenizer.check_round_trip(text, ids, item.where)
    except DataError:
        return None
    return _Drawn(place, source, item.context, ids) if ids else None
