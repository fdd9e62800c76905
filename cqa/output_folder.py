"""Output folders: one is ours and of the command's kind, or it holds nothing, or it is refused.

A folder that a command fills has a marker, a hidden file that names its kind. So no file of the
user's is ever cut, replaced or deleted: neither one that has a name of ours, nor an input.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from cqa.errors import ConfigError, CqaError, ResourceError
from cqa.files import discard, locked, refuse_held, rename, reported, sync, write_json
from cqa.reading import MOST_BYTES, read_object, refuse_special

Kind = Literal[
    "run",
    "scores",
    "prescreen",
    "shard",
    "scale",
    "report",
    "letters",
    "comparison",
    "study",
    "demo",
]

MARKER = ".cqa-fast.json"
NOUNS: Mapping[Kind, str] = {
    "run": "a training run",
    "scores": "scores",
    "prescreen": "a prescreening",
    "shard": "a shard",
    "scale": "a scale study",
    "report": "a report",
    "letters": "a letter choice",
    "comparison": "a comparison",
    "study": "a study",
    "demo": "a demo",
}
# What a folder without a marker, of an earlier version, is known by: a file of it, and its keys.
_KNOWN: tuple[tuple[Kind, str, tuple[str, ...]], ...] = (
    ("run", "run.json", ("settings", "model_digest")),
    ("scale", "scale.json", ("settings", "curve")),
    ("prescreen", "prescreen.json", ("settings", "classes")),
    ("scores", "meta.json", ("settings", "models")),
    ("letters", "letters.json", ("question", "mean_covered")),
    ("comparison", "compare.json", ("reference", "systems")),
    ("demo", "run/run.json", ("settings", "model_digest")),
    ("scale", "runs/n*-seed*-epochs*/run.json", ("settings", "model_digest")),  # not yet done
)
_REPORT = ("report.html", "report.md", "tables/scores_long.csv")
_NEW_FILE_SYSTEM = "lost+found"


def check_output(
    out: Path, kind: Kind, inputs: Iterable[tuple[str, Path]] = (), *, shared: bool = False
) -> None:
    """Refuse a folder that a command must not write to, before anything slow is done.

    Args:
        out: The folder; it need not be there.
        kind: What the command fills it with.
        inputs: What the command reads, as `input_paths` returns it.
        shared: Whether several processes may fill it, each waiting for its turn.

    Raises:
        ConfigError: It is a file, holds an input, or holds what is not of this kind.
        ResourceError: Another process is writing to it.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise ConfigError("expected --out to be a folder, got a file", where=str(out))
    for key, path in inputs:
        if _is_within(path, out):
            raise ConfigError(
                f"expected --out to hold no input, got {key} {path}", where=str(out),
                hint="name another --out; what is in it may be replaced",
            )  # fmt: skip
    if not out.exists():
        return
    _check_kind(out, kind)
    if not shared:
        refuse_held(out)


@contextmanager
def filled(out: Path, kind: Kind, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder for this process and mark it as of a kind, made if it is not there.

    Work that fails before it wrote anything leaves no mark, so another kind may take its place.

    Args:
        out: The folder.
        kind: What it is filled with.
        wait: Whether to wait for another process that holds it.

    Raises:
        ConfigError: It holds what is not of this kind.
        ResourceError: Another process holds it, or it cannot be written.
    """
    if out.is_dir():
        _check_kind(out, kind)
    with locked(out, wait=wait):
        unmarked = _marked_kind(out) is None
        if unmarked:
            write_json(out / MARKER, {"kind": kind})
        try:
            yield
        except BaseException:
            if unmarked and all(path.name.startswith(".") for path in out.iterdir()):
                (out / MARKER).unlink(missing_ok=True)
            raise


@contextmanager
def replaced_together(out: Path) -> Iterator[Path]:
    """Give a folder to write to, whose files take their places in `out` once all are there.

    So a full disk or a signal leaves the files of an earlier call as they were, all of one call.

    Args:
        out: A folder that this process holds.

    Raises:
        ResourceError: A file cannot be written.
    """
    staged = out / ".new"
    try:
        with reported(out):
            discard(staged)
            staged.mkdir()
        yield staged
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        places = [out / file.relative_to(staged) for file in files]
        for place in places:  # before any of them is taken
            with reported(place):
                place.parent.mkdir(parents=True, exist_ok=True)
        with reported(out):
            for file, place in zip(files, places, strict=True):
                rename(file, place)
            for folder in (out, *(place for place in out.iterdir() if place.is_dir())):
                sync(folder)
    finally:
        with suppress(OSError):
            discard(staged)


def check_output_file(
    path: Path,
    keys: Iterable[str],
    inputs: Iterable[tuple[str, Path]],
    *,
    lines: bool = False,
) -> None:
    """Refuse a file that a command must not replace: only what it wrote itself is replaced.

    Args:
        path: The file; it need not be there.
        keys: What the JSON object has that the command writes.
        inputs: What the command reads.
        lines: Whether it writes JSON Lines, of which the first is looked at.

    Raises:
        ConfigError: It is an input, a folder, or holds something else.
        ResourceError: Nothing can be written at its place.
    """
    _check_place(path)
    if not os.path.lexists(path):
        return
    for key, given in inputs:
        if given.exists() and path.exists() and path.samefile(given):
            raise ConfigError(f"expected --out to be no input, got {key} {given}", where=str(path))
    holds = _starts_with_object if lines else _is_object_with
    if path.is_dir() or not holds(path, keys):
        got = "a folder" if path.is_dir() else "another file"
        raise ConfigError(
            f"expected a new file, or one that this command wrote, got {got}", where=str(path),
            hint="nothing is replaced that it did not write; name another --out",
        )  # fmt: skip


def _check_place(path: Path) -> None:
    """Refuse a file's place before the work whose outcome would have no place to go."""
    there = next(place for place in path.absolute().parents if os.path.lexists(place))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        got = "one that cannot be written to" if there.is_dir() else "a file"
        raise ResourceError(
            f"expected a folder to write to, got {got}: {there}", where=str(path),
            hint="name another --out",
        )  # fmt: skip


def _check_kind(out: Path, kind: Kind) -> None:
    held = _marked_kind(out) or _known_kind(out)
    if held == kind:
        return
    if held is not None:
        raise ConfigError(
            f"expected a new folder or one of {NOUNS[kind]}, got one of {NOUNS[held]}",
            where=str(out), hint="name another --out",
        )  # fmt: skip
    with reported(out):
        foreign = sorted(path.name for path in out.iterdir() if not _counts_as_nothing(path.name))
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise ConfigError(
            f"expected a new folder or one of {NOUNS[kind]}, got one with `{foreign[0]}`{more}",
            where=str(out),
            hint="nothing is replaced that this command did not make; name another --out",
        )


def _counts_as_nothing(name: str) -> bool:
    """Whether a name is none that a command writes or a user would miss: hidden, as a lock is."""
    return name.startswith(".") or name == _NEW_FILE_SYSTEM


def _marked_kind(out: Path) -> Kind | None:
    """Return what the marker says; None where there is none.

    Raises:
        ConfigError: It is damaged, or of a version that knows other kinds.
    """
    path = out / MARKER
    if not os.path.lexists(path):
        return None
    held = (read_object(path, ConfigError) or {}).get("kind")
    for kind in NOUNS:
        if kind == held:
            return kind
    raise ConfigError(
        f"expected the kind of this folder, got: {held!r:.40}", where=str(path),
        hint="another version wrote it; name another --out",
    )  # fmt: skip


def _known_kind(out: Path) -> Kind | None:
    for kind, name, keys in _KNOWN:
        if any(_is_object_with(path, keys) for path in sorted(out.glob(name))):
            return kind
    return "report" if all((out / name).is_file() for name in _REPORT) else None


def _is_object_with(path: Path, keys: Iterable[str]) -> bool:
    """Whether a file is a JSON object with some keys."""
    found: dict[str, Any] | None = None
    with suppress(CqaError):  # whatever else it is, it is not what is looked for
        found = read_object(path, ConfigError)
    return found is not None and all(key in found for key in keys)


def _starts_with_object(path: Path, keys: Iterable[str]) -> bool:
    """Whether a file's first line is a JSON object with some keys."""
    found = None
    with suppress(CqaError, OSError, ValueError, RecursionError):
        refuse_special(path, ConfigError)
        with path.open("rb") as file:
            found = json.loads(file.readline(MOST_BYTES))
    return isinstance(found, dict) and all(key in found for key in keys)


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path, or what it links to, is a folder or lies in it, by whatever name."""
    link = Path(os.path.realpath(path.absolute().parent), path.name)
    real = Path(os.path.realpath(path))
    places = {real, *real.parents, *link.parents}
    return folder.is_dir() and any(p.exists() and p.samefile(folder) for p in places)
