"""Items to scoring trees: which texts follow which contexts, each once per pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from cqa.data.items import Item
from cqa.data.tokenizer import Boundary, Encoded, Ids, Tokenizer
from cqa.errors import DataError
from cqa.layout import Tree


class TooLongError(DataError):
    """An item has more tokens than the model has positions."""


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """An item with the ids of each option in its context."""

    item: Item
    options: tuple[Encoded, ...]

    def branches(self, tokenizer: Tokenizer) -> Iterator[tuple[Ids, Ids]]:
        """Yield every (context, option) to score: given the context, and after both nulls."""
        for option in self.options:
            yield option.context_ids, option.option_ids
            yield tokenizer.null_ids, option.option_ids
            yield tokenizer.null2_ids, option.option_ids


def encode_item(
    item: Item, tokenizer: Tokenizer, boundary: Boundary, *, score_eos: bool, max_positions: int
) -> EncodedItem:
    """Encode an item's options after its context.

    Raises:
        TooLongError: The ids are more than the model has positions.
        DataError: They do not decode to the text, or are the same for two options; or a control
            token is written in a text.
    """
    at_least = tokenizer.at_least_tokens(item.context)
    at_least += max(map(tokenizer.at_least_tokens, item.options))
    if at_least > max_positions:
        raise _too_long(item, max_positions, f"at least {at_least}")
    for text in item.options:
        tokenizer.refuse_special(item.context + text, item.where)
    context = tokenizer.render_context(item.context, item.where)
    end = (tokenizer.end_id,) if score_eos else ()
    options = []
    for text in item.options:
        encoded = tokenizer.encode_pair(context, text, boundary, item.where)
        n_tokens = len(encoded.context_ids) + len(encoded.option_ids) + len(end)
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
    return EncodedItem(item, tuple(options))


def _too_long(item: Item, max_positions: int, got: str) -> TooLongError:
    return TooLongError(
        f"expected at most {max_positions} tokens of context and option, got {got} in item "
        f"`{item.id}`",
        where=item.where,
        hint="shorten the context, or leave such items out with --too-long drop of score, "
        "prescreen or scale; nothing is ever cut",
    )


@dataclass(slots=True)
class Forest:
    """The distinct branches of some items: every context once, every option once after it."""

    branches: dict[Ids, dict[Ids, None]] = field(default_factory=dict)
    n_rows: int = 0

    def cost(self, pairs: Iterable[tuple[Ids, Ids]]) -> int:
        """Return how many rows some branches would add."""
        cost = 0
        new: set[Ids | tuple[Ids, Ids]] = set()
        for context, option in pairs:
            if context not in self.branches and context not in new:
                new.add(context)
                cost += len(context)
            if option not in self.branches.get(context, {}) and (context, option) not in new:
                new.add((context, option))
                cost += len(option) - 1
        return cost

    def add(self, pairs: Iterable[tuple[Ids, Ids]]) -> None:
        """Add branches that are not there yet."""
        pairs = list(pairs)
        self.n_rows += self.cost(pairs)
        for context, option in pairs:
            self.branches.setdefault(context, {})[option] = None

    def trees(self) -> list[Tree]:
        """Return the branches as trees, in order of first appearance."""
        return [Tree(context, tuple(options)) for context, options in self.branches.items()]


def passes(
    items: Iterable[EncodedItem], tokenizer: Tokenizer, batch_tokens: int
) -> Iterator[tuple[list[EncodedItem], Forest]]:
    """Group items into passes of at most `batch_tokens` rows, a longer item alone.

    Items whose branches are all in the pass already add no row; so items are limited in number too.
    """
    group: list[EncodedItem] = []
    forest = Forest()
    for item in items:
        pairs = list(item.branches(tokenizer))
        full = len(group) >= batch_tokens
        if group and (full or forest.n_rows + forest.cost(pairs) > batch_tokens):
            yield group, forest
            group, forest = [], Forest()
        group.append(item)
        forest.add(pairs)
    if group:
        yield group, forest
