"""The model's own verdict of a pair beside dI: expression beside state (section 2.3).

A verdict may come from the two texts alone, from their length or style, or from the place in which
they stand. So each pair is asked about under its own context and under that of another item, and
what the one exceeds the other by is what a claim may rest on: of the verdict, and of its
correlation with dI. The good text against itself shows how much of a verdict is the place.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from matplotlib.figure import Figure

from cqa.claims.claim import Asked, RowsByModel, Task
from cqa.claims.items import dealt_among, good_and_bad, read_all
from cqa.claims.sequences import Pair, encode, n_fed, score_sequences
from cqa.claims.verdict.asking import (
    LANGUAGES,
    QUESTIONS,
    SAME_QUESTIONS,
    Answers,
    Lang,
    answers,
    balanced,
    log_odds,
    question,
)
from cqa.claims.verdict.config import VerdictConfig
from cqa.claims.verdict.outcome import outcome
from cqa.claims.verdict.row import VerdictRow
from cqa.data.items import Item
from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError
from cqa.report.effect_figure import draw_effects
from cqa.schema.claims import StudyResult
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.engine import SequenceScores
from cqa.score.prefix_batch import encode_item
from cqa.score_folder import digest_json, full_key
from cqa.stats.information import contrast

Asking: TypeAlias = "array[int]"  # ids of a question; a tuple of them takes ten times the room


@dataclass(frozen=True, slots=True)
class Questions:
    """A pair's texts and the questions of it, as ids."""

    given: tuple[Pair, Pair]  # good and bad after the context
    null: tuple[Pair, Pair]  # and after none
    own: tuple[Asking, ...]  # in the order of QUESTIONS
    other: tuple[Asking, ...]  # the same with another item's context
    same: tuple[Asking, ...]  # the good text against itself, in the order of SAME_QUESTIONS
    answers: Answers
    lang: Lang
    n_bytes: tuple[int, int]

    def pairs(self) -> Iterator[Pair]:
        """Yield all that is scored."""
        yield from (*self.given, *self.null)
        for ids in map(tuple, (*self.own, *self.other, *self.same)):
            yield from ((ids, form) for form in self.answers.all)


class Verdict:
    """See the module."""

    name = "verdict"
    row = VerdictRow
    code = (
        "claims/verdict", "claims/sequences.py", "claims/dealing.py", "stats/information.py",
    )  # fmt: skip

    def __init__(self, config: VerdictConfig) -> None:
        self._config = config
        self._plain = config.template == "plain"
        self._shots = config.shots == "always" or (config.shots == "auto" and self._plain)

    def inputs(self) -> Mapping[str, Any]:
        """Return what decides a row besides its task."""
        return {"shots": self._shots}

    def tasks(self, tokenizer: Tokenizer, max_positions: int) -> list[Task[Questions]]:
        """Read the pairs, and deal every context to another one."""
        items = read_all(self._config)
        for item in items:
            _check_pair(item)
        contexts = [item.context for item in items]
        lengths = [len(tokenizer.encode_following(context)) for context in contexts]
        others = dealt_among(
            items, contexts, lengths, "contexts",
            "the null control asks of each pair under another item's context; take items of more "
            "sources, or give each its own context",
        )  # fmt: skip
        langs = [self._lang(item) for item in items]
        forms = {lang: answers(tokenizer, LANGUAGES[lang]) for lang in dict.fromkeys(langs)}
        return [
            self._task(item, contexts[k], lang, forms[lang], tokenizer, max_positions)
            for item, lang, k in zip(items, langs, others, strict=True)
        ]

    def _lang(self, item: Item) -> Lang:
        if self._config.asked_in != "auto":
            return self._config.asked_in
        return "zh" if item.labels.get("lang", "").lower().startswith("zh") else "en"

    def _task(
        self, item: Item, other: str, lang: Lang, forms: Answers, tokenizer: Tokenizer,
        max_positions: int,
    ) -> Task[Questions]:  # fmt: skip
        good, bad = good_and_bad(item)
        language = LANGUAGES[lang]
        longest = max(language.yes + language.no, key=lambda f: len(tokenizer.encode_following(f)))

        def asked(context: str, texts: tuple[str, str], first: bool) -> Asking:
            text = question(
                language, context, texts, first, shots=self._shots, plain=self._plain
            )  # fmt: skip
            return array("I", encode(tokenizer, text, longest, max_positions, item.where)[0])

        def of_pair(context: str) -> tuple[Asking, ...]:
            return tuple(
                asked(context, (good, bad) if good_first else (bad, good), first)
                for good_first, first in QUESTIONS
            )

        scored = encode_item(
            item, tokenizer, "split", score_eos=False, max_positions=max_positions
        )  # fmt: skip
        a, b = scored.options[item.answer or 0], scored.options[1 - (item.answer or 0)]
        content = Questions(
            given=((a.context_ids, a.option_ids), (b.context_ids, b.option_ids)),
            null=((tokenizer.null_ids, a.option_ids), (tokenizer.null_ids, b.option_ids)),
            own=of_pair(item.context), other=of_pair(other),
            same=tuple(asked(item.context, (good, good), first) for first in SAME_QUESTIONS),
            answers=forms, lang=lang, n_bytes=(len(good.encode()), len(bad.encode())),
        )  # fmt: skip
        return Task(
            id=item.id, group=item.group, source_id=item.labels.get("source_id"),
            key=digest_json([full_key(item), other, lang]), n_tokens=n_fed(content.pairs()),
            content=content,
        )  # fmt: skip

    def compute(
        self, engine: DecoderEngine, tasks: Sequence[Task[Questions]], model: Asked
    ) -> list[VerdictRow]:
        """Score both texts and the answers to all questions."""
        found = score_sequences(engine, (pair for task in tasks for pair in task.content.pairs()))
        return [_row(task, found, model) for task in tasks]

    def result(self, rows: RowsByModel[VerdictRow]) -> StudyResult:
        """Test the verdict and its correlation with dI against another context's."""
        return outcome(self.name, rows)

    def draw(self, rows: RowsByModel[VerdictRow], result: StudyResult) -> Figure:
        """Draw the verdict and its correlation with dI, beside those under another context."""
        return draw_effects(result)


def _check_pair(item: Item) -> None:
    """Refuse what cannot be asked about.

    Raises:
        DataError: There are not two texts, or a question cannot tell them apart.
    """
    if len(item.options) != 2:
        raise DataError(
            f"expected one good and one bad text, got {len(item.options)} texts", where=item.where,
            hint="a verdict is of two; write one line for each bad text",
        )  # fmt: skip
    good, bad = good_and_bad(item)
    if good.strip() == bad.strip():
        raise DataError(
            "expected texts that differ in more than the spaces around them, got the same twice",
            where=item.where, hint="a question quotes them without these spaces",
        )  # fmt: skip


def _row(task: Task[Questions], found: SequenceScores, model: Asked) -> VerdictRow:
    content = task.content
    pmi = [
        found[given].total - found[null].total
        for given, null in zip(content.given, content.null, strict=True)
    ]

    def asked(questions: Sequence[Asking]) -> tuple[tuple[float, ...], list[float]]:
        both = [
            log_odds(*(
                [found[ids, form].total for form in forms]
                for forms in (content.answers.yes, content.answers.no)
            ))
            for ids in map(tuple, questions)
        ]  # fmt: skip
        return tuple(odds for odds, _ in both), [mass for _, mass in both]

    (own, mass), (other, mass_other), (same, mass_same) = map(
        asked, (content.own, content.other, content.same)
    )
    null = mass_other + mass_same
    return VerdictRow(
        **task.labels(model),
        lang=content.lang,
        delta_i_nats=contrast(pmi, 0),
        verdict_nats=balanced(own),
        verdict_other_nats=balanced(other),
        log_odds_yes_nats=own,
        log_odds_yes_other_nats=other,
        log_odds_yes_same_nats=same,
        covered_mass=sum(mass) / len(mass),
        covered_mass_null=sum(null) / len(null),
        n_bytes_good=content.n_bytes[0],
        n_bytes_bad=content.n_bytes[1],
        n_tokens=task.n_tokens,
    )
