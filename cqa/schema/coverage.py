"""What `coverage` says of training data, and of the word lists that it was tagged by."""

from __future__ import annotations

from dataclasses import dataclass, field

from cqa.schema.result import Interval
from cqa.schema.written import Result, merged


@dataclass(frozen=True, slots=True)
class EstimatedShare(Result):
    """A share that was not counted, with its interval."""

    share: float
    ci95: Interval


@dataclass(frozen=True, slots=True)
class CountedShare(Result):
    """How many samples there are of a kind, and their share with Wilson's interval."""

    n: int
    share: float
    ci95: Interval


@dataclass(frozen=True, slots=True)
class TaggedShare(CountedShare):
    """A share that fallible word lists counted."""

    corrected: EstimatedShare | None  # None where their error is not known well enough


@dataclass(frozen=True, slots=True)
class TagError(Result):
    """How often the word lists agree with a tag given by hand."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def n(self) -> int:
        """How many samples were tagged by hand."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def sensitivity(self) -> float | None:
        """Recall: the share of the samples with the tag that the lists find."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else None


@dataclass(frozen=True, slots=True)
class TagQuality(Result):
    """An error, and the precision and recall that it amounts to."""

    error: TagError = field(metadata=merged())
    precision: CountedShare | None  # None of no samples, as is the next
    recall: CountedShare | None


@dataclass(frozen=True, slots=True)
class Tagger(Result):
    """How good the word lists are on a file that was tagged by hand."""

    gold: str
    tags: dict[str, TagQuality]
    subsets: dict[str, TagQuality]  # of the three types, and of their number


@dataclass(frozen=True, slots=True)
class FileCoverage(Result):
    """The counts of one file; None is what nothing can be said of."""

    file: str
    by: str  # "tags" or "words"
    n: int
    n_counted: int  # fewer than n where the word lists do not know the language
    touching: dict[str, CountedShare | None]  # by how many of the three types
    subsets: dict[str, CountedShare | None]  # by which of them
    tags: dict[str, CountedShare | None]


@dataclass(frozen=True, slots=True)
class Coverage(Result):
    """What the samples of training files touch."""

    files: tuple[FileCoverage, ...]
    tagger: Tagger | None  # None where the word lists were not used
