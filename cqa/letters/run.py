"""A letter choice from files of pairs to letters.jsonl, which a stopped one goes on with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence

from cqa.config import command_line, given_settings, input_paths
from cqa.data.items import Item, read_items
from cqa.data.jsonl import check_columns
from cqa.data.unique import each_once, file_line_id
from cqa.errors import DataError
from cqa.files import AppendedFile, discard, inside, write_json
from cqa.interrupt import Interrupt, continued_by
from cqa.letters.ask import QUESTION, Chat, NoLettersError, cyclic_orders
from cqa.letters.config import LettersConfig
from cqa.output_folder import check_output, filled
from cqa.schema.letters import LettersMeta, LettersRow
from cqa.score_folder import LETTERS, LETTERS_META, digest_json, full_key, item_key, read_letters
from cqa.server.client import Client, RefusedError, served_no_more
from cqa.server.parallel import in_parallel
from cqa.text import counted, named

MOST_OPTIONS = 20  # as many letters as tokens are given
AT_A_TIME = 16  # items between two times that rows are written
HALF = 0.5
Answered = tuple[list[int], list[float] | str]  # an order; its letters' probabilities, or a reason


def choose_letters(
    config: LettersConfig,
    *,
    client: Client | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
    on_wait: Callable[[str], None] = lambda _: None,
) -> LettersMeta:
    """Ask a chat server for the better option of every item, in all cyclic orders.

    Items that `config.out` already holds of the same model and question are not asked again.

    Args:
        config: The settings.
        client: What asks; by default one for the server's address and key.
        on_rows: Called with the number of items of every part that is done.
        on_wait: As for `Client`; not called where `client` is given.

    Raises:
        CqaError: Anything that the user can mend; see cqa.errors.
    """
    check_output(config.out, "letters", input_paths(config))
    items = list(_items(config))
    server = config.at_server
    client = client or Client(server.base, server.key(), on_wait=on_wait)
    chat = Chat(client, server.model)
    chat.check()
    key = digest_json([server.model, QUESTION])
    again = command_line(LettersConfig, "letters", given_settings(config))
    with continued_by(again), Interrupt() as interrupt, filled(config.out, "letters"):
        path = inside(config.out, LETTERS)
        with AppendedFile(path) as file:
            file.cut_partial_line()
            discard(inside(config.out, LETTERS_META))  # it would be of other rows
            held = {row.full_key: row for row in read_letters(path) if row.key == key}
            left = [item for item in items if full_key(item) not in held]
            for first in range(0, len(left), AT_A_TIME):
                part = left[first : first + AT_A_TIME]
                rows = _ask_all(chat, part, key, server.concurrency)
                file.append(b"".join(_line(row) for row in rows))
                held |= {row.full_key: row for row in rows}
                on_rows(len(rows))
                if interrupt.requested:
                    interrupt.stop("stopped between two parts")
            file.sync()
        chosen = [held[full_key(item)] for item in items]
        meta = _meta(server.base, server.model, key, chosen)
        write_json(inside(config.out, LETTERS_META), meta.to_json())
    return meta


def _items(config: LettersConfig) -> Iterator[Item]:
    check_columns(config.pairs, config.columns)
    records = read_items(config.pairs, columns=config.columns)
    for item in each_once(records, name=file_line_id, columns=config.columns):
        if len(item.options) > MOST_OPTIONS:
            raise DataError(
                f"expected at most {MOST_OPTIONS} options to choose by letter, got "
                f"{len(item.options)}",
                where=item.where,
            )
        yield item


def _ask_all(chat: Chat, items: Sequence[Item], key: str, n_at_a_time: int) -> list[LettersRow]:
    asked = [(k, o) for k, item in enumerate(items) for o in cyclic_orders(len(item.options))]
    answers = in_parallel(lambda one: _answer(chat, items[one[0]], one[1]), asked, n_at_a_time)
    by_item: dict[int, list[Answered]] = {}
    for (k, order), answer in zip(asked, answers, strict=True):
        by_item.setdefault(k, []).append((order, answer))
    return [_row(item, key, by_item[k]) for k, item in enumerate(items)]


def _answer(chat: Chat, item: Item, order: Sequence[int]) -> list[float] | str:
    """Return the probability of every place's letter, or why there is none."""
    try:
        found = chat.ask(item.context, [item.options[k] for k in order])
    except NoLettersError as error:
        return f"the server gave {error}"
    except RefusedError as refused:
        if refused.status == 404:
            raise served_no_more(chat.model, refused, chat.client.url) from None
        return f"the server answered {refused}"
    return found if any(found) else "no letter is among the likeliest first tokens"


def _row(item: Item, key: str, answers: Sequence[Answered]) -> LettersRow:
    problems = [answer for _, answer in answers if isinstance(answer, str)]
    shares, covered = [0.0] * len(item.options), []
    for order, answer in answers:
        if isinstance(answer, str):
            continue
        total = math.fsum(answer)
        covered.append(total)
        for place, option in enumerate(order):
            shares[option] += answer[place] / total / len(answers)
    assert item.answer is not None, "pairs and options have a right one"
    return LettersRow(
        id=item.id, item_key=item_key(item), key=key, kind=item.kind, group=item.group,
        source_id=item.labels.get("source_id"), answer=item.answer,
        shares=() if problems else tuple(shares), covered=tuple(covered),
        unscored=problems[0] if problems else None,
    )  # fmt: skip


def _line(row: LettersRow) -> bytes:
    return json.dumps(row.to_json(), ensure_ascii=False).encode() + b"\n"


def _meta(server: str, model: str, key: str, rows: Sequence[LettersRow]) -> LettersMeta:
    scored = [row for row in rows if row.unscored is None]
    covered = [math.fsum(row.covered) / len(row.covered) for row in scored]
    right = [row.shares.index(max(row.shares)) == row.answer for row in scored]
    return LettersMeta(
        server=server, model=model, key=key, question=QUESTION, n_items=len(rows),
        n_unscored=len(rows) - len(scored),
        mean_covered=math.fsum(covered) / len(covered) if covered else None,
        n_hardly_covered=sum(share < HALF for share in covered),
        accuracy=sum(right) / len(right) if right else None,
    )  # fmt: skip


def letters_text(meta: LettersMeta) -> str:
    """Return the outcome as text."""
    n = counted(meta.n_items, "item")
    lines = [f"{named(meta.model)}: {n}, each in all cyclic orders of its options"]
    if meta.accuracy is not None and meta.mean_covered is not None:
        lines.append(f"accuracy  {100 * meta.accuracy:.0f} %")
        covered = f"{100 * meta.mean_covered:.0f} %"
        lines.append(f"covered   {covered} of the probability fell on letters")
    if meta.n_hardly_covered:
        lines.append(f"          under half of it in {counted(meta.n_hardly_covered, 'item')}")
    if meta.n_unscored:
        lines.append(f"unscored  {counted(meta.n_unscored, 'item')}; letters.jsonl says why")
    return "\n".join(lines)
