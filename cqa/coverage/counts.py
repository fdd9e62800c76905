"""What training data touches: counts of the three kinds of tacit knowledge (§1.3, §3.2, §3.3).

A description of the data and never a filter: no sample is dropped, scored or asked to cover
anything. Tags come from the samples' own `tags`; data without them is tagged by word lists, whose
error on a file tagged by hand stands beside every count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from cqa.assets import COVERAGE
from cqa.coverage.tagger import TAGS, TYPES, is_english, tags_of
from cqa.data.samples import Sample, stream_samples
from cqa.errors import DataError
from cqa.schema.coverage import (
    CountedShare,
    Coverage,
    EstimatedShare,
    FileCoverage,
    TagError,
    TaggedShare,
    Tagger,
    TagQuality,
)
from cqa.text import aligned, counted

By = Literal["auto", "tags", "words"]
Counted = Literal["tags", "words"]  # what a file was counted by
GOLD = COVERAGE / "gold.jsonl"
SUBSETS = [subset for n in (3, 2, 1, 0) for subset in combinations(TYPES, n)]
DRAWS = 20_000


@dataclass(slots=True)
class Tally:
    """Counts over the samples of one file."""

    n: int = 0
    n_counted: int = 0  # fewer than n where the word lists do not know the language
    tags: Counter[str] = field(default_factory=Counter)
    subsets: Counter[tuple[str, ...]] = field(default_factory=Counter)
    unknown_tags: Counter[str] = field(default_factory=Counter)

    def add(self, tags: Iterable[str] | None) -> None:
        """Count a sample; None is one of which nothing can be said."""
        self.n += 1
        if tags is None:
            return
        found = set(tags)
        self.n_counted += 1
        self.tags.update(found & set(TAGS))
        self.unknown_tags.update(sorted(found - set(TAGS)))
        self.subsets[tuple(tag for tag in TYPES if tag in found)] += 1


def cover(files: Sequence[Path], *, by: By = "auto", gold: Path = GOLD) -> Coverage:
    """Count what the samples of training files touch.

    Args:
        files: Training data in any format that `train` reads.
        by: `tags` takes the samples' own, `words` the word lists; `auto` takes the tags of a file
            that has them.
        gold: Training samples with tags, on which the word lists' error is measured.

    Raises:
        DataError: A file is malformed, or tags are missing on some samples.
    """
    tallies = [(path, *tally_file(path, by)) for path in files]
    tagger = _tagger(gold) if any(used == "words" for _, used, _ in tallies) else None
    return Coverage(
        files=tuple(
            _file_coverage(path, used, tally, tagger if used == "words" else None)
            for path, used, tally in tallies
        ),
        tagger=tagger,
    )


def _tagger(gold: Path) -> Tagger:
    return Tagger(
        gold=str(gold),
        tags={tag: quality(error) for tag, error in measure(gold).items()},
        subsets={name: quality(error) for name, error in measure_subsets(gold).items()},
    )


def quality(error: TagError) -> TagQuality:
    """Return precision and recall with their Wilson intervals."""
    return TagQuality(
        error,
        precision=_share(error.tp, error.tp + error.fp),
        recall=_share(error.tp, error.tp + error.fn),
    )


def tally_file(path: Path, by: By) -> tuple[Counted, Tally]:
    """Count one file; also say by what.

    Raises:
        DataError: It is malformed, or `tags` does not do for it.
    """
    tally = Tally()
    used: Counted | None = None if by == "auto" else by
    for sample in stream_samples(path):
        used = used or ("words" if sample.tags is None else "tags")
        if used == "tags":
            tally.add(_own_tags(sample))
        else:
            whole = "\n".join(turn.text for turn in sample.turns)
            tally.add(tags_of(learned_text(sample)) if is_english(whole) else None)
    assert used is not None, "an empty file is refused"
    if used == "tags" and tally.unknown_tags and not any(tally.tags[tag] for tag in TYPES):
        got = ", ".join(tag for tag, _ in tally.unknown_tags.most_common(3))
        raise DataError(
            f"expected tags among {', '.join(TAGS)}, got: {got}", where=str(path),
            hint="--by words tags the texts by word lists instead",
        )  # fmt: skip
    return used, tally


def _own_tags(sample: Sample) -> tuple[str, ...]:
    if sample.tags is None:
        raise DataError(
            "expected `tags` on every sample or on none, got a sample without", where=sample.where,
            hint='a sample that touches nothing has "tags": []; --by words uses word lists instead',
        )  # fmt: skip
    return sample.tags


def learned_text(sample: Sample) -> str:
    """Return what a sample teaches: the answers, without what was asked."""
    return "\n".join(turn.text for turn in sample.turns if turn.learned)


def measure(gold: Path) -> dict[str, TagError]:
    """Compare the word lists with tags given by hand.

    Raises:
        DataError: The file is malformed, or a sample has no tags.
    """
    pairs = [
        (set(_own_tags(sample)), tags_of(learned_text(sample))) for sample in stream_samples(gold)
    ]
    return {tag: _tag_error((tag in truth, tag in found) for truth, found in pairs) for tag in TAGS}


def measure_subsets(gold: Path) -> dict[str, TagError]:
    """Compare, as `measure` does, which of the three types a sample touches, and how many.

    Raises:
        DataError: The file is malformed, or a sample has no tags.
    """
    pairs = [
        (_types(_own_tags(sample)), _types(tags_of(learned_text(sample))))
        for sample in stream_samples(gold)
    ]
    exact = {
        subset_name(s): _tag_error((truth == s, found == s) for truth, found in pairs)
        for s in SUBSETS
    }
    number = {
        f"{k} of 3": _tag_error((len(truth) == k, len(found) == k) for truth, found in pairs)
        for k in (3, 2, 1, 0)
    }
    return number | exact


def _types(tags: Iterable[str]) -> tuple[str, ...]:
    held = set(tags)
    return tuple(tag for tag in TYPES if tag in held)


def subset_name(subset: tuple[str, ...]) -> str:
    """Return what a subset of the three types is called."""
    return "+".join(subset) or "none"


def _tag_error(pairs: Iterable[tuple[bool, bool]]) -> TagError:
    """Count (by hand, by word lists)."""
    cells = Counter(pairs)
    return TagError(
        tp=cells[True, True], fp=cells[False, True], fn=cells[True, False], tn=cells[False, False]
    )


def _file_coverage(path: Path, used: Counted, tally: Tally, tagger: Tagger | None) -> FileCoverage:
    n = tally.n_counted

    def subset(name: str, k: int) -> CountedShare | None:
        return _tagged(k, n, tagger.subsets[name]) if tagger else _share(k, n)

    def single(tag: str) -> CountedShare | None:
        k = tally.tags[tag]
        if used == "tags" and tag not in TYPES and not k:
            return None  # nobody may have looked for it
        return _tagged(k, n, tagger.tags[tag]) if tagger else _share(k, n)

    touching = {k: sum(tally.subsets[s] for s in SUBSETS if len(s) == k) for k in (3, 2, 1, 0)}
    return FileCoverage(
        file=str(path),
        by=used,
        n=tally.n,
        n_counted=n,
        touching={str(k): subset(f"{k} of 3", count) for k, count in touching.items()},
        subsets={subset_name(s): subset(subset_name(s), tally.subsets[s]) for s in SUBSETS},
        tags={tag: single(tag) for tag in TAGS},
    )


def _share(k: int, n: int) -> CountedShare | None:
    """Return k of n with its Wilson interval, or None of nothing."""
    if n == 0:
        return None
    interval = binomtest(k, n).proportion_ci(method="wilson")
    return CountedShare(k, k / n, (float(interval.low), float(interval.high)))


def _tagged(k: int, n: int, known: TagQuality) -> TaggedShare | None:
    """Return k of n that word lists tagged, and what it would be without their error."""
    share = _share(k, n)
    if share is None:
        return None
    corrected = corrected_share(k, n, known.error)
    return TaggedShare(share.n, share.share, share.ci95, corrected=corrected)


def corrected_share(k: int, n: int, error: TagError, *, seed: int = 0) -> EstimatedShare | None:
    """Estimate the true share from k of n samples that a fallible tagger tagged.

        share = (k/n + specificity - 1) / (sensitivity + specificity - 1), cut to 0 … 1

    Its interval carries the uncertainty of all three rates: quantiles of the same formula over
    draws from their Jeffreys posteriors.

    Returns:
        None where the gold file lacks samples with or without the tag, or does not show that the
        tagger beats chance.

    Source: Rogan & Gladen 1978, "Estimating prevalence from the results of a screening test".
    """
    if error.sensitivity is None or error.tn + error.fp == 0:
        return None
    specificity = error.tn / (error.tn + error.fp)
    rng = np.random.default_rng(seed)

    def draw(yes: int, no: int) -> NDArray[np.float64]:
        return rng.beta(yes + 0.5, no + 0.5, DRAWS)

    seen, found, spared = draw(k, n - k), draw(error.tp, error.fn), draw(error.tn, error.fp)
    better = found + spared - 1
    if np.mean(better <= 0) > 0.025:
        return None
    shares = np.clip((seen + spared - 1) / np.where(better > 0, better, np.nan), 0, 1)
    low, high = np.nanquantile(shares, [0.025, 0.975])
    point = (k / n + specificity - 1) / (error.sensitivity + specificity - 1)
    return EstimatedShare(min(1.0, max(0.0, point)), (float(low), float(high)))


def coverage_text(result: Coverage) -> str:
    """Return the counts as text: a part per file, then files side by side, then what to mind."""
    parts = [_file_text(file, result.tagger) for file in result.files]
    if not any(file.n_counted for file in result.files):
        return "\n".join(parts)
    if len(result.files) > 1:
        rows = [
            [file.file, str(file.n_counted), *(_percent(file.tags[tag]) for tag in TYPES)]
            for file in result.files
        ]
        parts.append(aligned(["file", "n", *TYPES], rows))
    return "\n\n".join([*parts, "\n".join(_notes(result))])


def _file_text(file: FileCoverage, tagger: Tagger | None) -> str:
    by = "their own tags" if file.by == "tags" else "word lists"
    head = f"{file.file}: {counted(file.n, 'sample')}, by {by}"
    left = file.n - file.n_counted
    if left == file.n:
        return f"{head}; none is English and long enough to tell: nothing is counted"
    if left:
        head += f"; {left} not English, or too short to tell: not counted"
    known = tagger if file.by == "words" else None
    exact = known.subsets if known else {}
    single = known.tags if known else {}
    touching = [
        [f"{k} of 3", *_cells(share), *_error_cells(share, exact.get(f"{k} of 3"))]
        for k, share in file.touching.items()
    ]
    subsets = [
        [name, *_cells(share), *_error_cells(share, exact.get(name))]
        for name, share in file.subsets.items()
    ]
    tags = [
        [tag, *_cells(share), *_error_cells(share, single.get(tag))]
        for tag, share in file.tags.items()
    ]
    counts = ["n", "share", "95 % CI"]
    of_error = ["corrected", "95 % CI", "precision", "recall"] if known else []
    tables = [
        aligned(["touches", *counts, *of_error], touching + subsets),
        aligned(["tag", *counts, *of_error], tags),
    ]
    return "\n\n".join([head, *tables])


def _cells(share: CountedShare | None) -> list[str]:
    if share is None:
        return ["n/a", "n/a", "n/a"]
    return [str(share.n), _percent(share), _interval(share)]


def _error_cells(share: CountedShare | None, known: TagQuality | None) -> list[str]:
    if known is None:
        return []
    corrected = share.corrected if isinstance(share, TaggedShare) else None
    rates = [f"{rate.share:.2f}" if rate else "–" for rate in (known.precision, known.recall)]
    if corrected is None:
        return ["–", "–", *rates]
    return [_percent(corrected), _interval(corrected), *rates]


def _percent(share: CountedShare | EstimatedShare | None) -> str:
    return "n/a" if share is None else f"{100 * share.share:.0f} %"


def _interval(share: CountedShare | EstimatedShare) -> str:
    return "[{:.0f}, {:.0f}]".format(*(100 * x for x in share.ci95))


def _notes(result: Coverage) -> Iterator[str]:
    yield "Counts describe the data; nothing is filtered by them. Intervals: Wilson."
    if result.tagger is not None:
        n = next(iter(result.tagger.tags.values())).error.n
        yield (
            f"Word lists are blunt: precision and recall are of {n} samples tagged by hand; "
            f"`corrected` is the\nshare with that error taken out, its interval with that of the "
            f"error, were it the same on this\ndata. A dash: the samples tagged by hand are too "
            f"few to tell."
        )
