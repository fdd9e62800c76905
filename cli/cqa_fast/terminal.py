"""What reaches the terminal: text without control characters, errors of one message, streams."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from cqa.errors import CqaError, ToldElsewhereError
from cqa.escape import for_terminal
from cqa.ranks import let_first_tell
from cqa.text import shortened


def message(text: str) -> str:
    """Return what a line on standard error shows of a text."""
    return shortened(for_terminal(shortened(text)))


def say(text: str) -> None:
    """Print a result as text on standard output."""
    click.echo(for_terminal(text, keep="\n\t"))


def say_json(value: Any) -> None:
    """Print a result as one JSON object on standard output, whatever its encoding."""
    everywhere = (sys.stdout.encoding or "").lower() != "utf-8"
    text = json.dumps(value, indent=2, ensure_ascii=everywhere, allow_nan=False)
    click.echo(for_terminal(text, keep="\n", escape=lambda c: json.dumps(c)[1:-1]))


def show(error: CqaError) -> None:
    """Print an error: what was expected and got, then what to do.

    Of what several processes of a run have, one prints it.
    """
    if isinstance(error, ToldElsewhereError):
        return
    if not error.is_ours_to_tell:
        let_first_tell()
    place = f"{message(error.where)}: " if error.where else ""
    tell(f": {place}{message(error.message)}", label=click.style("error", fg="red", bold=True))
    if error.hint:
        # cut, it would not run
        command = f": {for_terminal(error.command)}" if error.command else ""
        label = click.style("hint", fg="cyan", bold=True)
        tell(f": {message(error.hint)}{command}", label=label)


def tell(line: str, *, label: str = "") -> None:
    """Print a line on standard error, what steers a terminal as escapes, after a styled label.

    Nobody may read it any more; the exit code still tells.
    """
    with suppress(OSError):
        click.echo(label + for_terminal(line), err=True)


def tell_place(noun: str, *paths: Path) -> None:
    """Say where something was written, each path on the one line."""
    tell(f"{noun}: {', '.join(message(str(path)) for path in paths)}")


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
