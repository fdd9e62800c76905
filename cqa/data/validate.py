"""Checks of data files before anything is computed: every bad line, and what to be wary of.

Warnings never change a result: length imbalance between good and bad options, texts that come
twice, evaluation texts that are trained on, whole or in part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cqa.data.items import Item, parse_continuation, parse_pair
from cqa.data.jsonl import parse_object, raw_lines
from cqa.data.overlap import TrainedTexts, folded
from cqa.data.samples import Sample, detect_format, parse_sample
from cqa.data.unique import UniqueIds
from cqa.errors import DataError

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
    """Read files of any kind and report on each, and on texts shared between them."""
    reports: list[FileReport] = []
    samples: list[Sample] = []
    asked: list[tuple[FileReport, Item]] = []
    for path in paths:
        report = FileReport(str(path))
        reports.append(report)
        for record in _records(path, report):
            if isinstance(record, Sample):
                samples.append(record)
            else:
                report.groups[record.group] += 1
                asked.append((report, record))
    _warn_of_items(asked)
    _warn_of_leaks(asked, TrainedTexts(samples))
    return reports


def _records(path: Path, report: FileReport) -> Iterable[Item | Sample]:
    """Yield the good records of a file; the bad ones become errors of its report."""
    ids = UniqueIds()
    try:
        for where, line in raw_lines(path):
            try:
                raw = parse_object(line, where)
                report.kind = report.kind or _kind_of(raw, where)
                record = _parse(raw, report, where)
                ids.add(record.id, where)
            except DataError as error:
                report.errors.append(_one_line(error))
                continue
            report.n_records += 1
            yield record
    except DataError as error:
        report.errors.append(_one_line(error))
    if not report.n_records and not report.errors:
        report.errors.append(f"{path}: expected at least one record, got an empty file")


def _one_line(error: DataError) -> str:
    return f"{error.where}: {error.message}{f'; {error.hint}' if error.hint else ''}"


def _kind_of(raw: dict[str, Any], where: str) -> str:
    if "continuation" in raw:
        return "continuations"
    return "pairs" if "good" in raw or "options" in raw else detect_format(raw, where)


def _parse(raw: dict[str, Any], report: FileReport, where: str) -> Item | Sample:
    if report.kind == "continuations":
        return parse_continuation(raw, where)
    if report.kind == "pairs":
        return parse_pair(raw, where)
    return parse_sample(raw, report.kind, where)


def _warn_of_items(asked: list[tuple[FileReport, Item]]) -> None:
    texts: dict[str, str] = {}
    uneven: dict[str, list[str]] = {}
    for report, item in asked:
        key = folded(item.context + "\0" + "\0".join(item.options))
        if key in texts:
            report.warnings.append(f"{item.where}: the same texts as {texts[key]}")
        texts.setdefault(key, item.where)
        lengths = [len(option) for option in item.options]
        if max(lengths) > IMBALANCE * min(lengths):
            uneven.setdefault(report.path, []).append(item.id)
    for report in {id(report): report for report, _ in asked}.values():
        ids = uneven.get(report.path, [])
        if ids:
            report.warnings.append(
                f"{len(ids)} of {report.n_records} items have options that differ by more than "
                f"{IMBALANCE:g}x in length, `{ids[0]}` first; a sum of log-probabilities favours "
                f"the shorter"
            )


def _warn_of_leaks(asked: list[tuple[FileReport, Item]], trained: TrainedTexts) -> None:
    for report, item in asked:
        found = trained.overlap((item.context, *item.options))
        if found is not None:
            part = f"words that are trained on (“{found.excerpt}”)" if found.excerpt else None
            report.warnings.append(
                f"{item.where}: {part or 'a text that is trained on'} at {found.where}"
            )


def report_text(reports: list[FileReport]) -> str:
    """Return the reports as text, a paragraph per file."""
    return "\n".join(line for report in reports for line in _lines(report))


def _lines(report: FileReport) -> list[str]:
    groups = ", ".join(f"{n} {group}" for group, n in report.groups.items())
    noun = report.kind if groups else f"{report.kind} samples"
    what = f"{report.n_records} {noun.strip()}{f' ({groups})' if groups else ''}"
    verdict = f"{len(report.errors)} bad lines" if report.errors else "ok"
    return [
        f"{report.path}: {what}: {verdict}",
        *(f"  error: {text}" for text in report.errors),
        *(f"  warning: {text}" for text in report.warnings),
    ]
