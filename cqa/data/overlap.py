"""Texts that are evaluated on and trained on: whole ones, and 13-grams of words of longer ones."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cqa.data.samples import Sample

N_WORDS = 13  # of an n-gram, as GPT-3's report takes them (Brown et al. 2020, appendix C)
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # written without spaces: each sign is a word
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A text, or an n-gram of its words, that a training sample holds too."""

    where: str  # the sample
    excerpt: str | None  # the first shared n-gram; None if the whole text is there


class TrainedTexts:
    """The texts of training samples: 12 bytes of each word, and the whole texts folded."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        """Read samples to the end."""
        self._whole: dict[str, str] = {}
        self._places: list[str] = []
        grams, owners = array("Q"), array("I")
        for sample in samples:
            for turn in sample.turns:
                self._whole.setdefault(folded(turn.text), sample.where)
                grams.extend(_fingerprints(_words(turn.text)))
            owners.extend([len(self._places)] * (len(grams) - len(owners)))
            self._places.append(sample.where)
        unsorted = np.frombuffer(grams, dtype=np.uint64)
        order = np.argsort(unsorted, kind="stable")
        self._grams = unsorted[order]
        self._owners = np.frombuffer(owners, dtype=np.uint32)[order]

    def overlap(self, texts: Iterable[str]) -> Overlap | None:
        """Return the first text, or else the first 13-gram of one, that is trained on."""
        texts = list(texts)
        for text in texts:
            if where := self._whole.get(folded(text)):
                return Overlap(where, None)
        found = (overlap for text in texts if (overlap := self._shared_gram(_words(text))))
        return next(found, None)

    def _shared_gram(self, words: Sequence[str]) -> Overlap | None:
        for k, gram in enumerate(_fingerprints(words)):
            at = int(np.searchsorted(self._grams, np.uint64(gram)))
            if at < len(self._grams) and self._grams[at] == gram:
                where = self._places[self._owners[at]]
                return Overlap(where, " ".join(words[k : k + N_WORDS]))
        return None


def folded(text: str) -> str:
    """Fold what does not make a text another one: case, width, white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _fingerprints(words: Sequence[str]) -> Iterator[int]:
    """Yield 64 bits of every 13-gram."""
    for k in range(len(words) - N_WORDS + 1):
        gram = " ".join(words[k : k + N_WORDS]).encode()
        yield int.from_bytes(hashlib.blake2b(gram, digest_size=8).digest())
