"""The question of a pair, in both orders and both polarities, and the forms of its answers.

    L(o, p) = ln P(yes) - ln P(no)      nats, each summed over its surface forms
    V       = mean over o and p of ± L(o, p), + where yes says that the good text is better

The four signs add to 0 over the answers and over the places, so that a model that always says yes,
or always prefers the first text, has V = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cqa.data.tokenizer import Ids, Tokenizer
from cqa.errors import ModelError

Lang = Literal["en", "zh"]
# Whether the good text stands first, and whether the question is of the first text.
QUESTIONS = ((True, True), (True, False), (False, True), (False, False))
SAME_QUESTIONS = (True, False)  # of two texts that are one: of the first, of the second


@dataclass(frozen=True, slots=True)
class Language:
    """The question and its answers in one language."""

    block: str  # of `context`, `first`, `second`, `asked`, `other`
    places: tuple[str, str]
    answer: str  # what opens an answer in plain text
    space: str  # between that and the answer
    yes: tuple[str, ...]
    no: tuple[str, ...]
    shots: tuple[tuple[str, str, str], ...]  # context, better, worse: one of each of QUESTIONS


LANGUAGES: dict[Lang, Language] = {
    "en": Language(
        block="Text: {context}\nFirst: {first}\nSecond: {second}\nQuestion: Does the {asked} "
        "continue the text better than the {other}? Answer yes or no.",
        places=("first", "second"),
        answer="\nAnswer:",
        space=" ",
        yes=("Yes", " Yes", "yes", " yes", "YES", " YES"),
        no=("No", " No", "no", " no", "NO", " NO"),
        shots=(
            (
                "The last bus had gone, and the rain came down harder.",
                "He turned up his collar and began to walk.",
                "Buses are made of metal and of glass.",
            ),
            (
                "Grandmother kept one drawer locked.",
                "After the funeral nobody wanted to be the one with the key.",
                "A drawer a drawer was a drawer.",
            ),
            (
                "The orchestra had stopped, but one violin went on.",
                "It took the boy four bars to hear that he was alone.",
                "The price of violins differs from shop to shop.",
            ),
            (
                "She wrote the letter three times.",
                "In the end she posted the empty envelope.",
                "The letter she letter wrote to it.",
            ),
        ),
    ),
    "zh": Language(
        block="正文：{context}\n甲：{first}\n乙：{second}\n问题：接在正文后面，{asked}比{other}更好"
        "吗？请回答是或否。",
        places=("甲", "乙"),
        answer="\n回答：",
        space="",
        yes=("是", " 是"),
        no=("否", " 否"),
        shots=(
            ("末班车开走了，雨下得更大。", "他竖起衣领，慢慢走了起来。", "公共汽车是用铁做的。"),
            ("外婆有一个抽屉总是锁着。", "葬礼以后，谁也不愿意拿那把钥匙。", "抽屉抽屉是抽屉的。"),
            ("乐队停了，一把小提琴还在响。", "过了四小节，男孩才听见只剩自己。", "琴的价钱不同。"),
            ("那封信她写了三遍。", "最后寄出去的是一个空信封。", "信她的信写信给了它。"),
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answers:
    """The token ids of the forms of yes and of no."""

    yes: tuple[Ids, ...]
    no: tuple[Ids, ...]

    @property
    def all(self) -> tuple[Ids, ...]:
        """Both."""
        return self.yes + self.no


def answers(tokenizer: Tokenizer, language: Language) -> Answers:
    """Encode the forms of both answers; most are one token.

    Raises:
        ModelError: One answer begins as the other does, such as with an unknown token.
    """
    yes, no = (_distinct(tokenizer, forms) for forms in (language.yes, language.no))
    if any(_begins(a, b) or _begins(b, a) for a in yes for b in no):
        raise ModelError(
            f"expected a tokenizer that tells `{language.yes[0]}` from `{language.no[0]}`, got one "
            "that writes both alike",
            hint="it does not know the language; ask in another with --asked-in",
        )
    return Answers(yes, no)


def _distinct(tokenizer: Tokenizer, forms: Sequence[str]) -> tuple[Ids, ...]:
    """Return ids of which none begins with another's: such would be counted twice."""
    found = sorted({tokenizer.encode_following(form) for form in forms}, key=lambda i: (len(i), i))
    return tuple(
        ids for k, ids in enumerate(found) if not any(_begins(ids, held) for held in found[:k])
    )


def _begins(ids: Ids, with_: Ids) -> bool:
    return ids[: len(with_)] == with_


def question(
    language: Language, context: str, texts: tuple[str, str], first: bool, *, shots: bool,
    plain: bool,
) -> str:  # fmt: skip
    """Return the question of two texts.

    Args:
        language: In which.
        context: What the texts continue.
        texts: The first and the second.
        first: Whether it is of the first.
        shots: Whether answered questions stand before it.
        plain: Whether it ends with what opens an answer.
    """
    asked = [
        _block(language, y, (good, bad) if good_first else (bad, good), of_first) + language.answer
        + language.space + (language.yes, language.no)[good_first != of_first][0]
        for (y, good, bad), (good_first, of_first) in zip(
            language.shots if shots else (), QUESTIONS, strict=False
        )
    ]  # fmt: skip
    own = _block(language, context, texts, first) + (language.answer if plain else "")
    return "\n\n".join([*asked, own])


def _block(language: Language, context: str, texts: tuple[str, str], first: bool) -> str:
    asked, other = language.places if first else language.places[::-1]
    return language.block.format(
        context=context.strip(), first=texts[0].strip(), second=texts[1].strip(),
        asked=asked, other=other,
    )  # fmt: skip


def log_odds(yes: Sequence[float], no: Sequence[float]) -> tuple[float, float]:
    """Return ln P(yes) - ln P(no) in nats and P(yes) + P(no), by the forms' log-probabilities."""
    sums = [float(np.logaddexp.reduce(sorted(logp))) for logp in (yes, no)]
    return sums[0] - sums[1], math.exp(sums[0]) + math.exp(sums[1])


def _signs(good_first: bool, of_first: bool) -> int:
    return 1 if good_first == of_first else -1


def balanced(found: Sequence[float]) -> float:
    """Return V of the log-odds of yes, in the order of QUESTIONS."""
    signed = [_signs(*q) * value for q, value in zip(QUESTIONS, found, strict=True)]
    return math.fsum(signed) / len(signed)


def halves(found: Sequence[float]) -> tuple[float, float]:
    """Return V of the questions of the first text and of those of the second.

    Each has both orders, so that neither holds a leaning to yes or to one place. A leaning to yes
    that turns with the order of these two texts adds to one what it takes from the other: V is free
    of it, the halves are not.
    """
    of_first, of_second = (
        math.fsum(
            _signs(*q) * value for q, value in zip(QUESTIONS, found, strict=True) if q[1] == side
        ) / 2
        for side in (True, False)
    )  # fmt: skip
    return of_first, of_second


def leaning_to_yes(found: Sequence[float]) -> float:
    """Return the mean log-odds of yes, whatever is asked."""
    return math.fsum(found) / len(found)


def leaning_to_first(found: Sequence[float], of_first: Sequence[bool]) -> float:
    """Return the mean log-odds that the first text is better, whichever that is."""
    signed = (value if of else -value for value, of in zip(found, of_first, strict=True))
    return math.fsum(signed) / len(found)
