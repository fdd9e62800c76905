"""Where a context's text y lies among the tokens of what a template makes of it."""

from __future__ import annotations

from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError

_MARK = "CqaContextStandsHere"  # a context that shows where a template puts one


def positions_of_context(
    tokenizer: Tokenizer, context: str, option: str, where: str
) -> tuple[int, int]:
    """Return the positions of a context's own tokens, from the first up to the second.

    A token that also holds blanks of the template counts as the context's.

    Raises:
        DataError: The template repeats or changes the context, or a token holds signs of both; or
            the context has no token besides the sequence's first.
    """
    rendered = tokenizer.render_context(context, option, where)
    start, stop = _characters(tokenizer, rendered, context, option, where)
    n_bos = len(tokenizer.bos_ids)
    spans = tokenizer.context_spans(rendered)[n_bos:]
    inside = [k for k, (begin, end) in enumerate(spans) if begin < stop and end > start]
    first, last = 0, 0
    if inside:
        first = inside[0] if start else 0
        last = inside[-1] + 1 if stop < len(rendered) else len(spans)
        for begin, end in (spans[first], spans[last - 1]):
            if (rendered[begin:start] + rendered[stop:end]).strip():
                raise DataError(
                    "expected a context with tokens of its own, got one that shares "
                    f"{rendered[begin:end]!r} with the template",
                    where=where, hint=tokenizer.template_hint,
                )  # fmt: skip
    first, last = first + n_bos, last + n_bos
    if not inside or max(first, 1) >= last:
        raise DataError(
            "expected a context with a token besides the sequence's first, which draws attention "
            "whatever it is, got none",
            where=where, hint="give a context of some words",
        )  # fmt: skip
    return first, last


def _characters(
    tokenizer: Tokenizer, rendered: str, context: str, option: str, where: str
) -> tuple[int, int]:
    """Return where the context's characters are in the rendered text."""
    before, _, after = tokenizer.render_context(_MARK, option, where).partition(_MARK)
    start, stop = len(before), len(rendered) - len(after)
    as_it_is = (
        start <= stop
        and rendered.startswith(before)
        and rendered.endswith(after)
        and rendered[start:stop].strip() == context.strip()
    )
    if not as_it_is:
        raise DataError(
            "expected a template that renders a context once and as it stands, got one under which "
            "its place cannot be told",
            where=where, hint=tokenizer.template_hint,
        )  # fmt: skip
    return start, stop
