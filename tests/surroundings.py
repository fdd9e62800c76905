"""What surrounds a command: special files in place of inputs, others' folders in place of outputs,
names that are markup, and odd environments. `make fuzz` draws many; the suite has each kind.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from helpers import ROOT, write_lines
from hostile import STRINGS
from synthetic import make_folder, make_items

from cqa.errors import CqaError
from cqa.escape import visible
from cqa.report.all_tables import all_tables
from cqa.report.caveats import caveats
from cqa.report.config import ReportConfig
from cqa.report.item_table import items_table, scored_items
from cqa.report.page import Report, html_page
from cqa.report.verdict import make_page
from cqa.report.write import read_focus, write_report

# ---- special files


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the whole path may be longer than an address can be
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _loop(path: Path) -> None:
    other = path.with_name(f"{path.name}-other")
    other.symlink_to(path)
    path.symlink_to(other)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "null device": lambda path: path.symlink_to("/dev/null"),
    "zero device": lambda path: path.symlink_to("/dev/zero"),
    "socket": _socket,
    "folder": Path.mkdir,
    "dangling link": lambda path: path.symlink_to(path.with_name("not there")),
    "looping link": _loop,
    "link to its folder": lambda path: path.symlink_to(path.parent),
}


def put_special(kind: str, path: Path) -> None:
    """Put a special file where a file is."""
    path.unlink()
    SPECIAL[kind](path)


# ---- output folders

OWN = {"notes.txt": b"mine", "data.jsonl": b'{"id": "a"}', "sub/deep.bin": bytes(range(256))}


def _files(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder; links are not followed."""
    return {
        str(path.relative_to(folder)): os.readlink(path).encode()
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def _filled(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(OWN.get(name, b"mine too"))


def output_case(rng: random.Random, scores: Path, place: Path) -> str | None:
    """Report into a folder that holds something; return what of the user's was lost, if anything.

    Args:
        rng: Decides what is there: files of any names, those of the report among them.
        scores: A sound folder of scores.
        place: An empty folder for the case.
    """
    names = [*OWN, "report.html", "tables/items.csv", "meta.json", "scores.jsonl", ".cqa-fast"]
    out = place / "out"
    match rng.choice(["files", "file", "linked", "input", "empty"]):
        case "files":
            _filled(out, rng.sample(names, rng.randint(1, 4)))
        case "file":
            out.write_bytes(b"mine")
        case "linked":
            _filled(place / "elsewhere", rng.sample(names, 2))
            out.symlink_to(place / "elsewhere")
        case "input":
            shutil.copytree(scores, out)
            scores = out
        case "empty":
            out.mkdir()
    before = _files(place)
    try:
        write_report(scores, ReportConfig(out=out))
    except CqaError as error:
        if error.exit_code != 2:
            return f"refused with {error.exit_code}: {error}"
        return None if _files(place) == before else "a refused folder was changed"
    lost = {name for name, held in before.items() if _files(place).get(name) != held}
    return f"{sorted(lost)} changed" if lost else None


# ---- rendered HTML

VOID = {"meta", "input", "br", "col", "link", "img"}


class Parsed(HTMLParser):
    """The elements of a page with the names of their attributes, and its texts."""

    def __init__(self, html: str) -> None:
        """Parse a page."""
        super().__init__()
        self.elements: Counter[tuple[str, ...]] = Counter()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.other: list[str] = []  # comments and declarations
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count an element."""
        self.elements[(tag, *sorted(name for name, _ in attrs))] += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count an element of a drawing."""
        self.elements[(tag, *sorted(name for name, _ in attrs))] += 1

    def handle_endtag(self, tag: str) -> None:
        """Close an element, which must be the innermost."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep a text."""
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        """Keep a comment."""
        self.other.append(data)

    def handle_decl(self, decl: str) -> None:
        """Keep a declaration."""
        self.other.append(decl)


def page_of(folder: Path, names: list[str]) -> tuple[str, list[str]]:
    """Return the page of a report whose labels and texts are given, and the texts of its items.

    Args:
        folder: An empty folder.
        names: Taken in turn for domains, sources, contexts and options.
    """
    items = make_items(3, dated=False)
    given = [items[k % len(items)] for k in range(len(names))]
    for k, (item, name) in enumerate(zip(given, names, strict=True)):
        item["context"] = f"c{k} {name}"
        item["options"] = [f" {name} {j}" for j in range(len(item["options"]))]
        item["domain"] = item["source_id"] = name or None
    adapters = [None, "epoch-01"]
    make_folder(folder / "scores", items=items, adapters=adapters)
    focus = read_focus(folder / "scores", ReportConfig(out=folder / "out"))
    found = scored_items(focus)
    tables = [*all_tables(focus), items_table(focus, found)]
    html = html_page(Report(focus, make_page(focus), caveats(focus), tables, {}, found, []))
    return html, [item["context"] for item in items]


def html_case(rng: random.Random, folder: Path) -> str | None:
    """Draw names, render them, and say where they were more than text."""
    names = ["".join(rng.choices(STRINGS, k=rng.randint(1, 3)))[:2000] for _ in range(6)]
    names = [name for name in names if "\ud800" not in name]  # no line of JSON in UTF-8 has one
    plain, _ = page_of(folder / "plain", [f"plain {k}" for k in range(len(names))])
    html, contexts = page_of(folder / "drawn", names)
    expected, parsed = Parsed(plain), Parsed(html)
    allowed = set(expected.elements)
    if strange := {element for element in parsed.elements if element not in allowed}:
        return f"elements that no text should make: {sorted(strange)[:3]} of {names}"
    if parsed.other != expected.other or parsed.open != expected.open:
        return f"comments or open elements of {names}"
    texts = "".join(parsed.texts)
    missing = [
        c for c in contexts if visible(c).replace("\r", "\n") not in texts.replace("\r", "\n")
    ]
    return f"texts that are not there as they are: {missing[:1]!r}" if missing else None


# ---- environments


@dataclass(frozen=True)
class Environment:
    """How a command is started."""

    script: str = '"$@"'  # of sh; the command is its arguments
    variables: tuple[tuple[str, str | None], ...] = ()


ENVIRONMENTS = {
    "closed stdout": Environment('"$@" >&-'),
    "closed stderr": Environment('"$@" 2>&-'),
    "closed stdin": Environment('"$@" <&-'),
    "full device": Environment('"$@" >/dev/full'),
    "broken pipe": Environment('"$@" | true'),
    "no home": Environment(variables=(("HOME", None), ("XDG_CACHE_HOME", None), ("USER", None))),
    "home is a file": Environment(variables=(("HOME", "/dev/null"),)),
    "C locale": Environment(variables=(("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("LANG", None))),
    "one column": Environment(variables=(("COLUMNS", "1"),)),
    "odd columns": Environment(variables=(("COLUMNS", "-3"), ("LINES", "x"))),
    "no color": Environment(variables=(("NO_COLOR", "1"), ("TERM", "dumb"))),
    "forced color": Environment(variables=(("FORCE_COLOR", "1"), ("TERM", "xterm-256color"))),
    "deleted folder": Environment('mkdir gone && cd gone && rmdir ../gone && "$@"'),
    "read-only folder": Environment('mkdir -p ro && chmod 500 ro && cd ro && "$@"'),
    "little memory for a stack": Environment('ulimit -s 512 && "$@"'),
    "few open files": Environment('ulimit -n 24 && "$@"'),
}
SAID = (0, 1, 2, 3, 4, 5, 6, 74)  # exit codes; 1: what was asked for is not so


def environment_case(name: str, command: list[str], folder: Path) -> str | None:
    """Start a command in an environment; return what was wrong with how it ended.

    Args:
        name: A key of ENVIRONMENTS.
        command: Arguments of cqa-fast; paths are absolute.
        folder: Where it is started.
    """
    held = ENVIRONMENTS[name]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])}
    for key, value in held.variables:
        variables.pop(key, None)
        if value is not None:
            variables[key] = value
    started = ["sh", "-c", held.script, "sh", sys.executable, "-m", "cqa_fast", *command]
    try:
        done = subprocess.run(
            started, cwd=folder, env=variables, capture_output=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return "a hang"
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    if "Traceback" in said or "Fatal Python error" in said:
        return f"a traceback: {said[-300:]}"
    return None if done.returncode in SAID else f"exit code {done.returncode}: {said[-300:]}"


def commands(folder: Path) -> Iterator[list[str]]:
    """Write small inputs into a folder; yield commands that read them, by absolute paths."""
    pairs = write_lines(
        folder / "pairs.jsonl",
        [{"id": f"p{k}", "context": "a é 漢", "good": " b", "bad": " c"} for k in range(3)],
    )
    make_folder(folder / "scores", items=make_items(2), adapters=[None, "epoch-01"])
    yield ["validate", str(pairs)]
    yield ["validate", str(pairs), "--json"]
    yield ["validate", str(folder / "missing.jsonl")]
    yield ["report", str(folder / "scores"), "--out", str(folder / "report")]
    yield ["report", "--help"]
    yield ["--version"]


def surroundings(n_cases: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Run cases of outputs, pages and environments in turn; return outcomes and failures."""
    scores = make_folder(folder / "sound", items=make_items(2), adapters=[None, "epoch-01"])
    (folder / "inputs").mkdir()
    asked = list(commands(folder / "inputs"))
    outcomes: Counter[str] = Counter()
    failures = []
    for case in range(n_cases):
        rng, place = random.Random(f"{seed}/{case}"), folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        kind = ("output", "page", "environment")[case % 3]
        try:
            match kind:
                case "output":
                    failure = output_case(rng, scores, place)
                case "page":
                    failure = html_case(rng, place)
                case _:
                    name, command = rng.choice(list(ENVIRONMENTS)), rng.choice(asked)
                    failure = environment_case(name, command, place)
                    failure = failure and f"{name}, {command[0]}: {failure}"
        except Exception as error:
            failure = f"{type(error).__name__}: {error!s:.300}"
        outcomes[f"{kind}: {'failed' if failure else 'held'}"] += 1
        if failure:
            failures.append(f"surroundings {case}, {kind}: {failure}")
    return outcomes, failures
