"""Checks of data files before anything is computed: every bad line, and what to be wary of.

Warnings never change a result: length imbalance between good and bad options, texts that come
twice, evaluation texts that are trained on, whole or in part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cqa.data.items import Item, parse_continuation, parse_pair
from cqa.data.jsonl import read_records
from cqa.data.overlap import TrainedTexts, folded
from cqa.data.samples import Sample, detect_format, parse_sample
from cqa.data.unique import Fingerprints, each_once, fingerprint
from cqa.errors import DataError
from cqa.text import counted

IMBALANCE = 1.2  # longest over shortest option, in characters, from which a warning is due


@dataclass(slots=True)
class FileReport:
    """What one file holds and what is wrong with it."""

    path: str
    kind: str = ""  # pairs, continuations, or a training format
    n_records: int = 0
    groups: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def validate_files(paths: Iterable[Path]) -> list[FileReport]:
    """Read files of any kind and length, and report on each, and on texts shared between them.

    No text of an item is kept, but an entry of `Fingerprints`; files are read again to name what
    they share.
    """
    reports = [FileReport(str(path)) for path in paths]
    samples: list[Sample] = []
    seen, repeated = Fingerprints(), Fingerprints()
    for report in reports:
        n_uneven, first_uneven = 0, ""
        for record in _records(report):
            report.n_records += 1
            if isinstance(record, Sample):
                samples.append(record)
                continue
            report.groups[record.group] += 1
            if _is_uneven(record):
                n_uneven, first_uneven = n_uneven + 1, first_uneven or record.id
            if not seen.add(_texts(record)):
                repeated.add(_texts(record))
        if n_uneven:
            report.warnings.append(
                f"{n_uneven} of {report.n_records} items have options that differ by more than "
                f"{IMBALANCE:g}x in length, `{first_uneven}` first; a sum of log-probabilities "
                "favours the shorter"
            )
    if repeated or samples:
        _warn_of_shared_texts(reports, repeated, TrainedTexts(samples))
    return reports


def _records(report: FileReport) -> Iterator[Item | Sample]:
    """Yield the good records of a file; the bad ones become errors of its report."""

    def parse(raw: dict[str, Any], where: str) -> Item | Sample:
        report.kind = report.kind or _kind_of(raw, where)
        if report.kind == "continuations":
            return parse_continuation(raw, where)
        if report.kind == "pairs":
            return parse_pair(raw, where)
        return parse_sample(raw, report.kind, where)

    def refuse(error: DataError) -> None:
        hint = f"; {error.hint}" if error.hint else ""
        report.errors.append(f"{error.where}: {error.message}{hint}")

    try:
        records = read_records(Path(report.path), parse, noun="record", refuse=refuse)
        yield from each_once(records, refuse)
    except DataError as error:
        refuse(error)


def _kind_of(raw: dict[str, Any], where: str) -> str:
    if "continuation" in raw:
        return "continuations"
    return "pairs" if "good" in raw or "options" in raw else detect_format(raw, where)


def _is_uneven(item: Item) -> bool:
    lengths = [len(option) for option in item.options]
    return max(lengths) > IMBALANCE * min(lengths)


def _texts(item: Item) -> str:
    """Return all texts of an item, folded: two items that agree in them ask the same."""
    return folded(item.context + "\0" + "\0".join(item.options))


def _warn_of_shared_texts(
    reports: list[FileReport], repeated: Fingerprints, trained: TrainedTexts
) -> None:
    """Name items whose texts another has too, and items that are trained on."""
    first: dict[int, str] = {}
    for report in reports:
        for record in _records(FileReport(report.path)):
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
        "groups": {str(group): n for group, n in report.groups.items()},
        "errors": report.errors,
        "warnings": report.warnings,
    }


def report_text(reports: list[FileReport]) -> str:
    """Return the reports as text, a paragraph per file."""
    return "\n".join(line for report in reports for line in _lines(report))


def _lines(report: FileReport) -> list[str]:
    groups = ", ".join(f"{n} {group}" for group, n in report.groups.items())
    nouns = {"": "record", "pairs": "item", "continuations": "continuation"}
    noun = nouns.get(report.kind, f"{report.kind} sample")
    what = counted(report.n_records, f"good {noun}" if report.errors else noun)
    what += f" ({groups})" if groups else ""
    verdict = counted(len(report.errors), "error") if report.errors else "ok"
    return [
        f"{report.path}: {what}: {verdict}",
        *(f"  error: {text}" for text in report.errors),
        *(f"  warning: {text}" for text in report.warnings),
    ]
