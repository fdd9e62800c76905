"""Checks of data files before anything is computed: every bad line, and what to be wary of.

Warnings never change a result: length imbalance between good and bad options, texts that come
twice, evaluation texts that are trained on, whole or in part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cqa.data.hub import path_text
from cqa.data.items import Item, parse_continuation, parse_pair, refuse_scored
from cqa.data.jsonl import check_columns, read_records
from cqa.data.overlap import TrainedTexts, folded
from cqa.data.samples import Sample, detect_format, parse_sample, plain_parts
from cqa.data.spacing import Spacing
from cqa.data.unique import Fingerprints, each_once, file_line_id, fingerprint, line_id
from cqa.errors import DataError
from cqa.schema.first import Encoding, FirstItem, FirstSample, Part
from cqa.text import counted, named

IMBALANCE = 1.2  # longest over shortest option, in characters, from which a warning is due
MOST_ERRORS = 100  # that the text of a file lists


@dataclass(slots=True)
class FileReport:
    """What one file holds and what is wrong with it."""

    path: str
    kind: str = ""  # pairs, continuations, or a training format
    n_records: int = 0
    groups: Counter[str] = field(default_factory=Counter)
    n_refused: int = 0
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    first: FirstSample | FirstItem | None = None


class Encoder(Protocol):
    """What a model makes of records."""

    def check(self, record: Item | Sample) -> None:
        """Encode a record as it would be learned or scored, or refuse it."""

    def describe(self, record: Item | Sample) -> Encoding:
        """Return the ids and pieces of a record that was not refused."""


def validate_files(
    paths: Iterable[Path],
    *,
    columns: Sequence[str] = (),
    encoder: Encoder | None = None,
    plain: bool = True,
) -> list[FileReport]:
    """Read files of any kind and length, and report on each, and on texts shared between them.

    No text of an item is kept, but an entry of `Fingerprints`; files are read again to name what
    they share.

    Args:
        paths: JSON Lines files, or tables.
        columns: Keys and the columns they are read from, such as `good=chosen`.
        encoder: Encodes every record, if it is known for which model.
        plain: Whether texts meet as they are, not in a template.

    Raises:
        DataError: A named column is in no record.
    """
    paths = list(paths)
    check_columns(paths, columns)
    reports = [FileReport(path_text(path)) for path in paths]
    samples: list[Sample] = []
    seen, repeated = Fingerprints(), Fingerprints()
    for report in reports:
        n_uneven, first_uneven = 0, ""
        spacing = Spacing()
        for record in _records(report, columns, encoder):
            report.n_records += 1
            report.first = report.first or _described(record, encoder)
            if isinstance(record, Sample):
                samples.append(record)
                if plain and record.format == "prompt":
                    question, answer = (turn.text for turn in record.turns)
                    spacing.add(record.id, question, (answer,))
                continue
            if plain:
                spacing.add(record.id, record.context, record.options)
            report.groups[record.group] += 1
            if _is_uneven(record):
                n_uneven, first_uneven = n_uneven + 1, first_uneven or record.id
            if not seen.add(_texts(record)):
                repeated.add(_texts(record))
        if n_uneven:
            have = "has" if report.n_records == 1 else "have"
            report.warnings.append(
                f"{n_uneven} of {counted(report.n_records, 'item')} {have} options that differ by "
                f"more than {IMBALANCE:g}x in length, `{first_uneven}` first; a sum of "
                "log-probabilities favours the shorter"
            )
        if not report.kind and len(report.errors) > 1:  # no line is what this package reads
            others = counted(len(report.errors) - 1, "other line")
            report.errors[1:] = [f"{report.path}: {others} of the same kind"]
        report.warnings += spacing.warnings(*_sides(report.kind))
    if repeated or samples:
        _warn_of_shared_texts(reports, repeated, TrainedTexts(samples), columns)
    return reports


def _sides(kind: str) -> tuple[str, str]:
    if kind in ("pairs", "continuations"):
        return "context", "option" if kind == "pairs" else "continuation"
    return "prompt", "response"


def _described(record: Item | Sample, encoder: Encoder | None) -> FirstSample | FirstItem:
    encoding = encoder.describe(record) if encoder else None
    if isinstance(record, Sample):
        parts = tuple(Part(text, learned) for text, learned in plain_parts(record))
        return FirstSample(record.id, parts, encoding)
    return FirstItem(record.id, record.context, record.options, encoding)


def _records(
    report: FileReport, columns: Sequence[str], encoder: Encoder | None = None
) -> Iterator[Item | Sample]:
    """Yield the good records of a file; the bad ones become errors of its report."""

    def parse(raw: dict[str, Any], where: str) -> Item | Sample:
        report.kind = report.kind or _kind_of(raw, where)
        record = _parse(raw, report.kind, where)
        if encoder:
            encoder.check(record)
        return record

    def refuse(error: DataError) -> None:
        hint = f"; {error.hint}" if error.hint else ""
        report.n_refused += 1
        report.errors.append(f"{error.where}: {error.message}{hint}")

    path = Path(report.path)
    try:
        records = read_records(path, parse, noun="record", refuse=refuse, columns=columns)
        # the kind is known from the first good line on, and decides how records are named
        yield from each_once(
            records, refuse, name=lambda where: _name(report, where), columns=columns
        )
    except DataError as error:
        refuse(error)


def _parse(raw: dict[str, Any], kind: str, where: str) -> Item | Sample:
    if kind == "continuations":
        return parse_continuation(raw, where)
    return parse_pair(raw, where) if kind == "pairs" else parse_sample(raw, kind, where)


def _name(report: FileReport, where: str) -> str:
    evaluated = report.kind in ("pairs", "continuations")
    return file_line_id(where) if evaluated else line_id(where)


def _kind_of(raw: dict[str, Any], where: str) -> str:
    if "continuation" in raw:
        return "continuations"
    refuse_scored(raw, where)
    pairs = any(key in raw for key in ("good", "options", "chosen"))
    return "pairs" if pairs else detect_format(raw, where)


def _is_uneven(item: Item) -> bool:
    lengths = [len(option) for option in item.options]
    return max(lengths) > IMBALANCE * min(lengths)


def _texts(item: Item) -> str:
    """Return all texts of an item, folded: two items that agree in them ask the same."""
    return folded(item.context + "\0" + "\0".join(item.options))


def _warn_of_shared_texts(
    reports: list[FileReport],
    repeated: Fingerprints,
    trained: TrainedTexts,
    columns: Sequence[str],
) -> None:
    """Name items whose texts another has too, and items that are trained on."""
    first: dict[int, str] = {}
    for report in reports:
        for record in _records(FileReport(report.path), columns):
            if isinstance(record, Sample):
                break  # no file holds both
            texts = _texts(record)
            if texts in repeated:
                place = first.setdefault(fingerprint(texts), record.where)
                if place != record.where:
                    report.warnings.append(f"{record.where}: the same texts as {place}")
            found = trained.overlap((record.context, *record.options))
            if found is not None:
                part = f"words that are trained on (“{found.excerpt}”)" if found.excerpt else None
                report.warnings.append(
                    f"{record.where}: {part or 'a text that is trained on'} at {found.where}"
                )


def describe_report(report: FileReport) -> dict[str, Any]:
    """Return a report as a JSON-ready object."""
    return {
        "path": report.path,
        "kind": report.kind,
        "n_records": report.n_records,
        "n_refused": report.n_refused,
        "groups": {str(group): n for group, n in report.groups.items()},
        "first": report.first.to_json() if report.first else {},
        "errors": report.errors,
        "warnings": report.warnings,
    }


def report_text(reports: list[FileReport]) -> str:
    """Return the reports as text, a paragraph per file."""
    return "\n".join(line for report in reports for line in _lines(report))


def _lines(report: FileReport) -> list[str]:
    groups = ", ".join(f"{n} {named(str(group))}" for group, n in report.groups.items())
    nouns = {"": "record", "pairs": "item", "continuations": "continuation"}
    noun = nouns.get(report.kind, f"{report.kind} sample")
    what = counted(report.n_records, f"good {noun}" if report.errors else noun)
    what += f" ({groups})" if groups else ""
    verdict = f"{report.n_refused} refused" if report.errors else "ok"
    n_more = len(report.errors) - MOST_ERRORS
    return [
        f"{report.path}: {what}: {verdict}",
        *(f"  {text}" for text in (_first_lines(report.first) if report.first else ())),
        *(f"  error: {text}" for text in report.errors[:MOST_ERRORS]),
        *([f"  … {counted(n_more, 'more error')}: --json has all"] if n_more > 0 else []),
        *(f"  warning: {text}" for text in report.warnings),
    ]


def _first_lines(first: FirstSample | FirstItem) -> Iterator[str]:
    """Yield what is learned or scored of the first record, between ⟦ and ⟧."""
    if isinstance(first, FirstSample):
        what, parts = "learned", [(part.text, part.learned) for part in first.parts]
    else:
        what, parts = "scored", [(first.context, False), (first.options[0], True)]
    yield f"first, {what} between ⟦ and ⟧: " + "".join(
        f"⟦{_shortened(text)}⟧" if marked else _shortened(text) for text, marked in parts
    )
    if encoding := first.encoding:
        start = encoding.learned.index(True)
        near = slice(max(0, start - _NEAR), start + _NEAR)
        tokens = zip(encoding.ids[near], encoding.pieces[near], strict=True)
        yield f"its tokens from {near.start + 1} on, {what} from {start + 1} on: " + " ".join(
            f"{token}={piece!r}" for token, piece in tokens
        )


_NEAR = 8  # tokens before and after the place where the marked part begins


def _shortened(text: str) -> str:
    text = text if len(text) <= 90 else f"{text[:40]} … {text[-45:]}"
    return text.replace("\n", "⏎")
