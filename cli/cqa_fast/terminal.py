"""What reaches the terminal: text without control characters, errors of one message, streams."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click

from cqa.errors import CqaError

LONGEST_MESSAGE = 300  # characters; what a user gave can be megabytes long
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # categories that steer a terminal or cannot be seen
_JOINERS = "\u200c\u200d"  # part of Persian and Indic words, and of emoji


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def plain(text: str, *, keep: str = "", escape: Callable[[str], str] = _escape) -> str:
    """Return text with every character that steers a terminal written as an escape.

    Args:
        text: May hold what stood in a file: ids, groups, paths.
        keep: Control characters that stay, such as the line ends of a table.
        escape: Writes one character.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = keep + _JOINERS
    return "".join(
        c if c in kept or unicodedata.category(c) not in _HIDDEN else escape(c) for c in text
    )


def shortened(text: str) -> str:
    """Return text of at most `LONGEST_MESSAGE` characters, without its middle if it is longer."""
    if len(text) <= LONGEST_MESSAGE:
        return text
    head, tail = LONGEST_MESSAGE * 2 // 3, LONGEST_MESSAGE // 3 - 3
    return f"{text[:head]} … {text[-tail:]}"


def message(text: str) -> str:
    """Return what a line on standard error shows of a text."""
    return shortened(plain(shortened(text)))


def say(text: str) -> None:
    """Print a result as text on standard output."""
    click.echo(plain(text, keep="\n\t"))


def say_json(value: Any) -> None:
    """Print a result as one JSON object on standard output, whatever its encoding."""
    everywhere = (sys.stdout.encoding or "").lower() != "utf-8"
    text = json.dumps(value, indent=2, ensure_ascii=everywhere, allow_nan=False)
    click.echo(plain(text, keep="\n", escape=lambda c: json.dumps(c)[1:-1]))


def show(error: CqaError) -> None:
    """Print an error: what was expected and got, then what to do."""
    place = f"{message(error.where)}: " if error.where else ""
    tell(f"{click.style('error', fg='red', bold=True)}: {place}{message(error.message)}")
    if error.hint:
        command = f": {plain(error.command)}" if error.command else ""  # cut, it would not run
        tell(f"{click.style('hint', fg='cyan', bold=True)}: {message(error.hint)}{command}")


def tell(line: str) -> None:
    """Print a line on standard error; nobody may read it any more, the exit code still tells."""
    with suppress(OSError):
        click.echo(line, err=True)


def open_missing_streams() -> None:
    """Give the three standard streams a place where the caller closed them.

    The next file that is opened would take the free number, and be written into by whatever
    writes to the stream of that number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
