"""Items to scoring trees: which texts follow which contexts, each once per pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from cqa.data.items import Item
from cqa.data.tokenizer import Boundary, Encoded, Ids, Tokenizer
from cqa.errors import DataError
from cqa.layout import PackedBatch, Tree, pack_trees

Packed = tuple[list[Tree], PackedBatch, list[list[slice]]]  # with the places of the options


class OverlongError(DataError):
    """An item has more tokens than the model has positions."""


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """An item with the ids of each option in its context."""

    item: Item
    options: tuple[Encoded, ...]
    other_contexts: tuple[Ids, ...] = ()  # of other items, in place of the second null context

    def null2_contexts(self, tokenizer: Tokenizer) -> tuple[Ids, ...]:
        """Return the contexts over which the second null is a mean: one of them, or several."""
        if self.other_contexts or tokenizer.null2_ids is None:
            return self.other_contexts
        return (tokenizer.null2_ids,)

    def sequences(self, tokenizer: Tokenizer) -> Iterator[tuple[Ids, Ids]]:
        """Yield every (context, option) to score: given the context, and after the nulls."""
        for option in self.options:
            yield option.context_ids, option.option_ids
            yield tokenizer.null_ids, option.option_ids
            for context in self.null2_contexts(tokenizer):
                yield context, option.option_ids


def encode_item(
    item: Item,
    tokenizer: Tokenizer,
    boundary: Boundary,
    *,
    score_eos: bool,
    max_positions: int,
    other_contexts: tuple[Ids, ...] = (),
) -> EncodedItem:
    """Encode an item's options after its context.

    Args:
        item: The texts.
        tokenizer: What encodes them.
        boundary: How context and option meet.
        score_eos: Whether options end with the end token.
        max_positions: Tokens that the model has room for.
        other_contexts: Contexts of other items, where they stand for the second null context.

    Raises:
        OverlongError: The ids are more than the model has positions.
        DataError: They do not decode to the text, or are the same for two options; or a control
            token is written in a text.
    """
    at_least = tokenizer.at_least_tokens(item.context)
    at_least += max(map(tokenizer.at_least_tokens, item.options))
    if at_least > max_positions:
        raise _too_long(item, max_positions, f"at least {at_least}")
    for text in item.options:
        tokenizer.refuse_special(item.context + text, item.where)
    context, *others = {tokenizer.render_context(item.context, o, item.where) for o in item.options}
    if others:
        raise DataError(
            "expected options that all bring their own thoughts, or none of them, got some of each",
            where=item.where,
            hint="the template puts an empty block of thoughts before an option without; the "
            "options would stand in different contexts",
        )
    end = (tokenizer.end_id,) if score_eos else ()
    options = []
    longest = max(map(len, other_contexts), default=0)
    for text in item.options:
        encoded = tokenizer.encode_pair(context, text, boundary, item.where)
        n_before = max(len(encoded.context_ids), longest)
        n_tokens = n_before + len(encoded.option_ids) + len(end)
        if n_tokens > max_positions:
            raise _too_long(item, max_positions, f"{n_tokens}")
        options.append(
            replace(
                encoded,
                option_ids=encoded.option_ids + end,
                option_char_ends=encoded.option_char_ends + (len(text),) * len(end),
            )
        )
    if len({option.option_ids for option in options}) < len(options):
        raise DataError(
            f"expected options that differ in their tokens, got the same ids twice in `{item.id}`",
            where=item.where,
            hint="the tokenizer writes both texts alike, such as é in one sign or in two",
        )
    return EncodedItem(item, tuple(options), other_contexts)


def _too_long(item: Item, max_positions: int, got: str) -> OverlongError:
    return OverlongError(
        f"expected at most {max_positions} tokens of context and option, got {got} in item "
        f"`{item.id}`",
        where=item.where,
        hint="shorten the context, or leave such items out with --too-long drop of score, "
        "prescreen or scale; nothing is ever cut",
    )


@dataclass(slots=True)
class PrefixBatch:
    """The distinct sequences of some items: every context once, every option once after it."""

    sequences: dict[Ids, dict[Ids, None]] = field(default_factory=dict)
    n_rows: int = 0
    _packed: Packed | None = field(default=None, init=False, repr=False, compare=False)

    def cost(self, pairs: Iterable[tuple[Ids, Ids]]) -> int:
        """Return how many rows some sequences would add."""
        cost = 0
        new: set[Ids | tuple[Ids, Ids]] = set()
        for context, option in pairs:
            if context not in self.sequences and context not in new:
                new.add(context)
                cost += len(context)
            if option not in self.sequences.get(context, {}) and (context, option) not in new:
                new.add((context, option))
                cost += len(option) - 1
        return cost

    def add(self, pairs: Iterable[tuple[Ids, Ids]]) -> None:
        """Add sequences that are not there yet."""
        pairs = list(pairs)
        self.n_rows += self.cost(pairs)
        for context, option in pairs:
            self.sequences.setdefault(context, {})[option] = None
        self._packed = None

    def trees(self) -> list[Tree]:
        """Return the sequences as trees, in order of first appearance."""
        return [Tree(context, tuple(options)) for context, options in self.sequences.items()]

    def packed(self) -> Packed:
        """Return the sequences as trees and laid out in rows; the work is done once."""
        if self._packed is None:
            trees = self.trees()
            self._packed = (trees, *pack_trees(trees))
        return self._packed


def passes(
    items: Iterable[EncodedItem], tokenizer: Tokenizer, batch_tokens: int
) -> Iterator[tuple[list[EncodedItem], PrefixBatch]]:
    """Group items into passes of at most `batch_tokens` rows, a longer item alone.

    Items whose sequences are all in the pass already add no row, so their number is limited too.
    """
    group: list[EncodedItem] = []
    prefixes = PrefixBatch()
    for item in items:
        pairs = list(item.sequences(tokenizer))
        full = len(group) >= batch_tokens
        if group and (full or prefixes.n_rows + prefixes.cost(pairs) > batch_tokens):
            yield group, prefixes
            group, prefixes = [], PrefixBatch()
        group.append(item)
        prefixes.add(pairs)
    if group:
        yield group, prefixes
