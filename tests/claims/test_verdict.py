"""Verdicts: toys whose answer is known, rows against transformers, errors, and the example."""

import hashlib
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from claims.asking import MODEL, reference_stats
from helpers import read_lines, write_lines

from cqa.assets import STUDIES
from cqa.claims.claim import Asked
from cqa.claims.run import run_study
from cqa.claims.verdict.asking import LANGUAGES, QUESTIONS, answers, balanced, halves, question
from cqa.claims.verdict.claim import Verdict
from cqa.claims.verdict.config import VerdictConfig
from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError, ModelError
from cqa.score.engine import SequenceStats

NAMES = [
    "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo", "Mia",
    "Ned", "Ola", "Pia", "Quin", "Rob", "Sue", "Tom",
]  # fmt: skip
ITEMS = [
    {
        "id": f"v{k}", "context": f"{name} was late again.", "source_id": name,
        "good": f" The door of {name} stood open" + "!" * (2 * k + len(name) % 2),
        "bad": f" {name} is a name.",
    }
    for k, name in enumerate(NAMES)
]  # fmt: skip
PARTS = re.compile(r"Text: (.*)\nFirst: (.*)\nSecond: (.*)\nQuestion: Does the (first|second)")


class Toy:
    """An engine whose I(x; y) and whose answers are given functions of the texts."""

    pass_rows = 10_000

    def __init__(self, tokenizer, information, says, mass=0.9) -> None:
        self.tokenizer, self.information, self.says, self.mass = tokenizer, information, says, mass
        self.forms = answers(tokenizer, LANGUAGES["en"])

    def run(self, prefixes):
        return {
            (context, option): self._stats(context, option)
            for context, options in prefixes.sequences.items()
            for option in options
        }

    def _stats(self, context, option):
        text = self.tokenizer.decode(context)
        if not text.endswith("Answer:"):
            y = "" if context == self.tokenizer.null_ids else text
            logp = self.information(y, self.tokenizer.decode(option).strip()) if y else 0.0
        else:
            y, first, second, asked = PARTS.findall(text)[-1]
            odds = self.says(y, first, second, asked == "first")
            yes = option in self.forms.yes
            share = -math.log1p(math.exp(-odds if yes else odds)) + math.log(self.mass)
            logp = share - math.log(len(self.forms.yes if yes else self.forms.no))
        return SequenceStats([logp] + [0.0] * (len(option) - 1))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(MODEL)


@pytest.fixture
def settings(tmp_path):
    pairs = write_lines(tmp_path / "pairs.jsonl", ITEMS)

    def make(**changes) -> VerdictConfig:
        given = {"model": str(MODEL), "pairs": (pairs,), "out": tmp_path / "out", "device": "cpu"}
        return VerdictConfig(**{**given, **changes})

    return make


@pytest.fixture
def ask(settings, tokenizer):
    """Return the rows and the result of toys, the base first; effects of all items by name."""
    claim = Verdict(settings())
    tasks = claim.tasks(tokenizer, 4096)

    def asked(*toys):
        keys = [None, *(f"epoch-{k:02}" for k in range(1, len(toys)))]
        rows = {
            key: claim.compute(Toy(tokenizer, *toy), tasks, Asked(str(key), key))
            for key, toy in zip(keys, toys, strict=True)
        }
        result = claim.result(rows)
        claim.draw(rows, result)
        found = {(e.name, e.adapter): e for e in result.effects if e.group is None}
        return rows, result, found

    return asked


def hashed(*parts: str) -> float:
    """Return a number from -1 to 1 that looks drawn at random."""
    digest = hashlib.sha256("|".join(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**47 - 1


def information(context: str, text: str) -> float:
    """Return an I(x; y) that is larger where the text has its own context's name."""
    own = text.startswith("The door") and context.split()[0] in text
    return 2 * hashed(context, text) + 3 * own


def own_delta(context: str, first: str, second: str, of_first: bool) -> float:
    """Answer by dI."""
    difference = information(context, first) - information(context, second)
    return 1 + (difference if of_first else -difference)


def test_a_model_that_always_says_yes_or_always_the_first_says_nothing(ask):
    for says in (lambda *_: 3.1, lambda *q: 2.3 if q[-1] else -2.3):
        rows, result, found = ask((information, says))
        assert {r.verdict_nats for r in rows[None]} == {0.0}
        assert {r.verdict_other_nats for r in rows[None]} == {0.0}
        assert found["agreement", None].value is None
        assert found["accuracy", None].value == 0.5
        assert {f.mark for f in result.findings} == {"n/a"}
    assert found["yes", None].value == 0.0
    assert found["first", None].value == found["same_first", None].value == pytest.approx(2.3)
    assert found["same_spread", None].value == pytest.approx(0, abs=1e-12)


def test_a_model_that_answers_by_its_own_di_agrees_with_it_wholly(ask):
    rows, result, found = ask((information, own_delta))
    for row in rows[None]:
        assert row.verdict_nats == pytest.approx(row.delta_i_nats)
        assert row.covered_mass == pytest.approx(0.9)
    assert found["agreement", None].value == pytest.approx(1)
    assert found["partial_agreement", None].value == pytest.approx(1)
    assert found["reliability", None].value == pytest.approx(1)
    assert abs(found["other_agreement", None].value) < 0.5
    assert found["same_side", None].value == 1.0
    assert found["yes", None].value == pytest.approx(1)
    assert found["same_balanced", None].value == 0.0
    assert {f.name: f.mark for f in result.findings} == {
        "says so": "shown", "says so as dI does": "shown",
    }  # fmt: skip
    own = [r.verdict_nats - r.verdict_other_nats for r in rows[None]]
    assert found["excess", None].value == pytest.approx(np.mean(own))
    assert not result.notes


def test_what_the_texts_say_without_their_context_is_shown_of_nothing(ask):
    """Both follow the length: they correlate wholly, and as much under another's context."""

    def by_length(_, text: str) -> float:
        return len(text) / 10

    def longer(_, first: str, second: str, of_first: bool) -> float:
        return (len(first) - len(second)) / 10 * (1 if of_first else -1)

    _, result, found = ask((by_length, longer))
    assert found["agreement", None].value == found["other_agreement", None].value == 1.0
    assert found["verdict", None].p < 0.05
    assert found["excess", None].value == found["agreeing", None].value == 0.0
    assert found["partial_agreement", None].value is None  # nothing is left of it
    assert {f.mark for f in result.findings} == {"n/a"}


def test_an_adapter_is_compared_with_the_base_item_by_item(ask):
    def opposite(*question) -> float:
        return -own_delta(*question)

    rows, result, found = ask((information, opposite), (information, own_delta))
    assert [r.id for r in rows["epoch-01"]] == [r.id for r in rows[None]]
    for name, of in (("change", "excess"), ("agreeing_change", "agreeing")):
        assert (name, None) not in found
        both = [found[of, adapter].value for adapter in ("epoch-01", None)]
        assert found[name, "epoch-01"].value == pytest.approx(both[0] - both[1])
    assert {name for panel in result.panels for name in panel} <= {name for name, _ in found}
    marks = {(f.name, f.adapter): f.mark for f in result.findings}
    assert marks["says so more as dI does", "epoch-01"] == "shown"
    assert marks["says so as dI does", None] == "against"


def test_little_mass_on_yes_and_no_is_said(ask):
    _, result, found = ask((information, own_delta, 0.3), (information, own_delta, 0.8))
    assert found["covered_mass", None].value == pytest.approx(0.3)
    (note,) = result.notes
    assert note.startswith("base: the forms of yes and no have 30.0% of the probability")


def test_halves_have_both_orders_each_and_their_mean_is_the_whole():
    found = [0.3, -1.2, 4.0, 0.7]
    assert balanced(found) == pytest.approx(np.mean(halves(found)))
    assert halves(found) == pytest.approx(((0.3 - 4.0) / 2, (0.7 + 1.2) / 2))
    for nuisance in ([1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0]):  # yes, and the first
        assert halves(nuisance) == (0.0, 0.0)
    assert QUESTIONS[0] == (True, True)


def test_questions_as_they_are_asked():
    english, chinese = LANGUAGES["en"], LANGUAGES["zh"]
    asked = question(english, "It rained. ", (" He left.", " She left."), True, shots=False,
                     plain=True)  # fmt: skip
    assert asked == (
        "Text: It rained.\nFirst: He left.\nSecond: She left.\nQuestion: Does the first continue "
        "the text better than the second? Answer yes or no.\nAnswer:"
    )
    shot = question(english, "y", ("a", "b"), False, shots=True, plain=True)
    assert re.findall(r"Answer: (\w+)", shot) == ["Yes", "No", "No", "Yes"]
    assert re.findall(r"Does the (\w+)", shot) == ["first", "second", "first", "second", "second"]
    assert shot.endswith("better than the first? Answer yes or no.\nAnswer:")
    chat = question(chinese, "下雨了。", ("他走了。", "她走了。"), False, shots=False, plain=False)
    assert chat == (
        "正文：下雨了。\n甲：他走了。\n乙：她走了。\n问题：接在正文后面，乙比甲更好吗？请回答是或否。"
    )
    asked = question(chinese, "y", ("a", "b"), True, shots=True, plain=True)
    assert re.findall(r"回答：(\S)", asked) == ["是", "否", "否", "是"]


def test_answers_that_a_tokenizer_writes_alike_are_refused():
    class Unknowing:
        def encode_following(self, text: str):
            return (0,)

    with pytest.raises(ModelError, match="expected a tokenizer that tells `是` from `否`"):
        answers(Unknowing(), LANGUAGES["zh"])


def test_a_form_that_begins_as_another_is_not_counted_twice(tokenizer):
    forms = answers(tokenizer, LANGUAGES["en"]).all
    assert len(forms) == 12
    assert not any(a != b and a[: len(b)] == b for a in forms for b in forms)


@pytest.mark.parametrize(("lang", "places"), [("en", (1,)), ("zh", (0, 1, 2, 3))])
def test_rows_are_those_of_transformers_in_float64(settings, tmp_path, tokenizer, lang, places):
    items = [{**ITEMS[k], "lang": lang + "-x" * k} for k in range(2)]
    pairs = write_lines(tmp_path / f"{lang}.jsonl", items)
    config = settings(pairs=(pairs,), shots="never")
    run_study(Verdict(config), config)
    row, _ = read_lines(config.out / "rows.jsonl")
    item, language = items[0], LANGUAGES[lang]
    assert row["lang"] == lang
    s = {t: reference_stats(item["context"], item[t])[0] for t in ("good", "bad")}
    null = tokenizer.decode(tokenizer.null_ids)
    s0 = {t: reference_stats(null, item[t])[0] for t in ("good", "bad")}
    delta_i = s["good"] - s0["good"] - s["bad"] + s0["bad"]
    assert row["delta_i_nats"] == pytest.approx(delta_i, abs=2e-4)

    def odds(context: str, first: str, second: str, of_first: bool) -> tuple[float, float]:
        text = question(language, context, (first, second), of_first, shots=False, plain=True)
        p = [
            sum(math.exp(reference_stats(text, form)[0]) for form in forms)
            for forms in (language.yes, language.no)
        ]
        return math.log(p[0] / p[1]), sum(p)

    good, bad = item["good"], item["bad"]
    asked = [(good, bad, True), (good, bad, False), (bad, good, True), (bad, good, False)]
    own = [odds(item["context"], *asked[k]) for k in places]
    found = [row["log_odds_yes_nats"][k] for k in places]
    assert found == pytest.approx([value for value, _ in own], abs=1e-4)
    if lang == "en":  # it has three times the forms; what follows is the same
        return
    assert row["covered_mass"] == pytest.approx(np.mean([mass for _, mass in own]), rel=1e-3)
    other, _ = odds(items[1]["context"], *asked[2])
    assert row["log_odds_yes_other_nats"][2] == pytest.approx(other, abs=1e-4)
    same, _ = odds(item["context"], good, good, False)
    assert row["log_odds_yes_same_nats"][1] == pytest.approx(same, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bad": ["a", "b"]}, r"bad\.jsonl:2: expected one good and one bad text, got 3 texts"),
        ({"bad": ITEMS[1]["good"] + " "}, r"bad\.jsonl:2: expected texts that differ in more than"),
        ({"bad": "word " * 5000}, r"bad\.jsonl:2: expected at most \d+ tokens"),
    ],
)
def test_bad_lines_are_named(settings, tmp_path, change, said):
    pairs = write_lines(tmp_path / "bad.jsonl", [ITEMS[0], {**ITEMS[1], **change}, *ITEMS[2:]])
    config = settings(pairs=(pairs,))
    with pytest.raises(DataError, match=said):
        run_study(Verdict(config), config)
    assert not config.out.exists()


def test_one_context_for_all_cannot_be_dealt(settings, tokenizer, tmp_path):
    pairs = write_lines(tmp_path / "one.jsonl", [{**i, "context": "So."} for i in ITEMS])
    with pytest.raises(DataError, match="expected contexts that can be dealt to items of other"):
        Verdict(settings(pairs=(pairs,))).tasks(tokenizer, 4096)


def test_a_template_asks_without_examples_and_opens_the_answer_itself(settings, tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    templated = Tokenizer(MODEL, template=str(file))
    task, *_ = Verdict(settings(template=str(file))).tasks(templated, 4096)
    asked = templated.decode(task.content.own[1])
    assert asked.startswith("<user>Text: Ada was late again.\nFirst: The door of Ada stood open")
    assert asked.endswith("better than the first? Answer yes or no.</><assistant>")
    context, option = task.content.given[1]
    assert templated.decode(context) == "<user>Ada was late again.</><assistant>"
    assert templated.decode(option) == ITEMS[0]["bad"]


def test_shots_are_those_of_plain_text_unless_asked_for(settings):
    chat = settings(template="chat")
    for config, shots in ((settings(), True), (chat, False), (settings(shots="never"), False)):
        assert Verdict(config).inputs() == {"shots": shots}
    assert Verdict(settings(template="chat", shots="always")).inputs() == {"shots": True}


def test_the_study_of_the_example(tmp_path):
    command = [sys.executable, "-m", "cqa_fast", "study", "verdict", "--model", str(MODEL)]
    command += ["--pairs", str(STUDIES / "verdict.jsonl"), "--out", str(tmp_path / "out")]
    command += ["--device", "cpu", "--shots", "never"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    claim, null, *_ = done.stdout.splitlines()
    assert claim.endswith("14 items")
    assert null.startswith("null: the same pair under another item's context")
    rows = read_lines(tmp_path / "out" / "rows.jsonl")
    assert len({r["source_id"] for r in rows}) == 14
    assert {len(r["log_odds_yes_same_nats"]) for r in rows} == {2}
