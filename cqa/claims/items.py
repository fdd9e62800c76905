"""The items of a study: read, parted into good and bad, and each given another one's text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cqa.claims.config import ItemsConfig
from cqa.claims.dealing import dealt
from cqa.data.items import Item, read_items
from cqa.data.jsonl import check_columns
from cqa.data.unique import each_once, file_line_id
from cqa.errors import DataError


def read_all(config: ItemsConfig) -> list[Item]:
    """Read the items of all files, in their order.

    Raises:
        DataError: A line is malformed, an id comes twice, or a column is in no record.
    """
    check_columns(config.pairs, config.columns)
    records = read_items(config.pairs, columns=config.columns)
    return list(each_once(records, name=file_line_id, columns=config.columns))


def good_and_bad(item: Item) -> tuple[str, str]:
    """Return the texts of an item of two, the good one first."""
    answer = item.answer or 0
    return item.options[answer], item.options[1 - answer]


def dealt_among(
    items: Sequence[Item],
    texts: Sequence[str],
    lengths: Sequence[int],
    what: str,
    hint: str,
    unfit: Callable[[int, int], bool] = lambda _, __: False,
) -> list[int]:
    """Deal a text of every item to another one; see `dealt`.

    Args:
        items: Whose texts they are.
        texts: One of each item.
        lengths: Of each text, in tokens.
        what: What the texts are called in the error.
        hint: What to do where there is no such deal.
        unfit: Whether an item cannot take another's text for a reason besides.

    Returns:
        The number of the item whose text each gets.

    Raises:
        DataError: Too many are of one source or of one text.
    """
    sources = [item.labels.get("source_id") for item in items]
    others = dealt(texts, sources, lengths, unfit)
    if others is None:
        raise DataError(
            f"expected {what} that can be dealt to items of other sources, got too many of one "
            "source or of one text",
            where=items[0].where,
            hint=hint,
        )
    return others
