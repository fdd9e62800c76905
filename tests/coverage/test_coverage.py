"""Counts of what data touches: by hand, by simulation, and what is not counted."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from helpers import DEMO, read_lines, write_lines

from cqa.coverage.counts import (
    GOLD,
    corrected_share,
    cover,
    coverage_text,
    measure,
    measure_subsets,
    quality,
)
from cqa.coverage.tagger import TAGS, TYPES, is_english, tags_of
from cqa.errors import DataError
from cqa.schema.coverage import TagError

CRAFT = "The narrator is the right choice here: the pacing of the scene carries the theme."
READER = "By then the reader has been told twice, and will expect the letter to be opened."
WORLD = "Nobody who works on a ward would do that; in practice two people sign for it."
PLAIN = "Multiply the first number by the second and then add what is left of the other one."
FOREIGN = {
    "de": "Der Leser weiß an dieser Stelle schon, dass der Brief gefälscht ist, und wartet.",
    "fr": "Le lecteur sait déjà que la lettre est fausse, et il attend que la fille la lise.",
    "es": "El lector ya sabe que la carta es falsa, y espera que la hija la lea por fin.",
    "it": "Il lettore sa già che la lettera è falsa, e aspetta che la figlia la legga.",
    "nl": "De lezer weet al dat de brief vals is, en wacht tot de dochter hem gaat lezen.",
    "sv": "Läsaren vet redan att brevet är falskt, och väntar på att dottern ska läsa det.",
    "zh": "读者此时已经知道这封信是伪造的，所以他们在等女儿把它读完。",
    "ru": "Читатель уже знает, что письмо поддельное, и ждёт, когда дочь наконец его прочтёт.",
    "code": "def f(x):\n    return [g(y) ** 2 + h(y) % 7 for y in range(x) if y not in cache]",
}  # fmt: skip


def sample(response, **extra):
    return {"prompt": "What do you think of it, and why?", "response": response, **extra}


@pytest.mark.parametrize(
    ("text", "types"),
    [
        (CRAFT, {"intent"}),
        (READER, {"audience"}),
        (WORLD, {"reality"}),
        (f"{CRAFT} {READER} {WORLD}", set(TYPES)),
        (PLAIN, set()),
        (CRAFT.upper(), {"intent"}),
    ],
    ids=["intent", "audience", "reality", "all", "none", "case"],
)
def test_word_lists_find_the_kinds_of_knowledge(text, types):
    assert tags_of(text) & set(TYPES) == types


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("At first I took the door. But the chain is on, so it is the window.", "decision-turn"),
        ("It just doesn\u2019t read right to me.", "sensory"),
        ("Personally I have never liked it; a matter of taste.", "preference"),
        ("Write the ending first, on index cards, before your deadline.", "procedural"),
    ],
    ids=lambda value: value if "-" in value or " " not in value else "",
)  # fmt: skip
def test_word_lists_find_turns_and_what_the_paper_leaves_out(text, tag):
    assert tag in tags_of(text)
    assert tag not in tags_of(PLAIN)


def test_a_turn_comes_after_a_first_judgement():
    assert "decision-turn" not in tags_of("But the chain is on. At first the door was there.")


@pytest.mark.parametrize("language", FOREIGN)
def test_word_lists_do_not_apply_to_other_languages_and_code(language):
    assert not is_english(FOREIGN[language])


@pytest.mark.parametrize("text", [CRAFT, READER, WORLD, PLAIN])
def test_word_lists_apply_to_english(text):
    assert is_english(text)
    assert not is_english("Yes, it is.")  # too short to tell


def test_every_english_sample_of_the_demo_is_known_as_english():
    assert all(is_english(r["response"]) for r in read_lines(DEMO / "train.jsonl"))


def test_own_tags_are_counted_as_they_stand():
    (entry,) = cover([DEMO / "train.jsonl"]).files
    rows = [set(r["tags"]) for r in read_lines(DEMO / "train.jsonl")]
    assert (entry.by, entry.n, entry.n_counted) == ("tags", 105, 105)
    for k in (0, 1, 2, 3):
        n = sum(len(tags & set(TYPES)) == k for tags in rows)
        assert entry.touching[str(k)].n == n
    subsets = Counter("+".join(t for t in TYPES if t in tags) or "none" for tags in rows)
    assert len(entry.subsets) == 8
    assert {name: share.n for name, share in entry.subsets.items()} == subsets
    for tag in TYPES:
        assert entry.tags[tag].n == sum(tag in tags for tags in rows)
        assert "corrected" not in entry.tags[tag].to_json()


def test_intervals_are_wilsons():
    (entry,) = cover([DEMO / "train.jsonl"]).files
    share = entry.touching["3"]
    n, p, z = 105, share.n / 105, 1.959963984540054
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    assert share.share == p
    assert share.ci95 == pytest.approx(expected)


def test_tags_that_nobody_gave_are_not_counted_as_zero(tmp_path):
    none = write_lines(tmp_path / "a.jsonl", [sample(PLAIN, tags=["intent"])])
    some = write_lines(tmp_path / "b.jsonl", [sample(PLAIN, tags=["intent", "sensory"])])
    first, second = cover([none, some]).files
    assert first.tags["sensory"] is None
    assert second.tags["sensory"].n == 1
    assert first.tags["reality"].n == 0


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": READER, "response": CRAFT},
        {"instruction": READER, "output": CRAFT},
        {"conversations": [{"from": "human", "value": READER}, {"from": "gpt", "value": CRAFT}]},
        {
            "messages": [
                {"role": "user", "content": READER},
                {"role": "assistant", "content": CRAFT},
            ]
        },
        {"dialogue": [{"role": "B", "text": READER}, {"role": "C", "text": CRAFT}]},
    ],
    ids=["prompt", "alpaca", "sharegpt", "messages", "dialogue"],
)
def test_answers_are_tagged_in_every_format_and_questions_are_not(tmp_path, record):
    (entry,) = cover([write_lines(tmp_path / "t.jsonl", [record])]).files
    assert entry.by == "words"
    assert {tag: entry.tags[tag].n for tag in TYPES} == {
        "intent": 1, "audience": 0, "reality": 0,
    }  # fmt: skip


def test_samples_in_other_languages_are_left_out_of_the_counts_and_said_to_be(tmp_path):
    texts = [CRAFT, READER, FOREIGN["zh"], FOREIGN["de"]]
    records = [{"prompt": text, "response": text} for text in texts]
    result = cover([write_lines(tmp_path / "t.jsonl", records)])
    (entry,) = result.files
    assert (entry.n, entry.n_counted) == (4, 2)
    assert entry.touching["1"].share == 1
    assert "2 not English, or too short to tell: not counted" in coverage_text(result)


def test_of_a_file_in_another_language_nothing_is_said(tmp_path):
    records = [{"prompt": FOREIGN["zh"], "response": FOREIGN["zh"]}]
    result = cover([write_lines(tmp_path / "t.jsonl", records)])
    (entry,) = result.files
    assert all(share is None for share in [*entry.tags.values(), *entry.touching.values()])
    (line,) = coverage_text(result).splitlines()
    assert line.endswith(
        "t.jsonl: 1 sample, by word lists; none is English and long enough to tell: "
        "nothing is counted"
    )


def test_some_samples_without_tags_are_refused_unless_words_are_asked_for(tmp_path):
    file = write_lines(tmp_path / "t.jsonl", [sample(CRAFT, tags=[]), sample(READER)])
    with pytest.raises(DataError, match=f"^{file}:2: expected `tags` on every sample or on none"):
        cover([file])
    with pytest.raises(DataError, match="on every sample"):
        cover([write_lines(tmp_path / "u.jsonl", [sample(CRAFT)])], by="tags")
    assert cover([file], by="words").files[0].n_counted == 2


def test_tags_of_another_kind_are_refused_and_not_counted_as_zero(tmp_path):
    file = write_lines(tmp_path / "t.jsonl", [sample(CRAFT, tags=["fiction", "short"])])
    with pytest.raises(DataError, match=f"^{file}: expected tags among intent, .* got: fiction"):
        cover([file])


def test_gold_file_is_sixty_samples_with_known_tags():
    rows = read_lines(GOLD)
    assert len(rows) == len({row["id"] for row in rows}) == 60
    assert {tag for row in rows for tag in row["tags"]} == set(TAGS)


def test_error_of_the_word_lists_is_what_the_gold_file_says():
    found = [(set(r["tags"]), tags_of(r["response"])) for r in read_lines(GOLD)]
    for tag, error in measure(GOLD).items():
        assert (error.tp, error.fp, error.fn, error.tn) == tuple(
            sum((tag in truth, tag in ours) == cell for truth, ours in found)
            for cell in ((True, True), (False, True), (True, False), (False, False))
        )
        assert error.tp + error.fp + error.fn + error.tn == 60


@pytest.mark.parametrize("tag", TYPES)
def test_word_lists_beat_chance_on_the_three_kinds(tag):
    error = quality(measure(GOLD)[tag])
    assert error.precision.ci95[0] > 0.5
    assert error.recall.ci95[0] > 0.4


def test_error_may_be_measured_on_a_file_of_ones_own(tmp_path):
    gold = write_lines(
        tmp_path / "gold.jsonl",
        [
            sample(CRAFT, tags=["intent"]),
            sample(READER, tags=["intent"]),
            sample(CRAFT, tags=[]),
            sample(PLAIN, tags=[]),
        ],
    )
    file = write_lines(tmp_path / "t.jsonl", [sample(CRAFT)])
    tagger = cover([file], gold=gold).tagger
    assert tagger.gold == str(gold)
    intent = tagger.tags["intent"]
    assert intent.error == TagError(tp=1, fp=1, fn=1, tn=1)
    assert intent.precision.share == intent.recall.share == 0.5
    assert tagger.tags["sensory"].recall is None


def test_correction_undoes_a_known_error():
    exact = TagError(tp=800_000, fn=200_000, fp=100_000, tn=900_000)
    corrected = corrected_share(31_000, 100_000, exact)  # 0.3 · 0.8 + 0.7 · 0.1
    assert corrected.share == pytest.approx(0.3)
    assert corrected.ci95 == pytest.approx([0.296, 0.304], abs=2e-3)
    perfect = TagError(tp=10**6, fn=0, fp=0, tn=10**6)
    assert corrected_share(40, 100, perfect).share == pytest.approx(0.4)


def test_correction_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    truth, sensitivity, specificity, n = 0.25, 0.7, 0.9, 400
    hits = []
    for _ in range(200):
        tp, tn = rng.binomial(30, sensitivity), rng.binomial(30, specificity)
        k = rng.binomial(n, truth * sensitivity + (1 - truth) * (1 - specificity))
        corrected = corrected_share(k, n, TagError(tp=tp, fn=30 - tp, fp=30 - tn, tn=tn))
        if corrected is not None:
            low, high = corrected.ci95
            hits.append(low <= truth <= high)
    assert len(hits) > 190
    assert np.mean(hits) > 0.92


@pytest.mark.parametrize(
    "error",
    [
        TagError(tp=0, fp=4, fn=0, tn=56),
        TagError(tp=4, fp=0, fn=0, tn=0),
        TagError(tp=1, fp=2, fn=3, tn=4),
    ],
    ids=["nothing-to-find", "all-to-find", "no-better-than-chance"],
)
def test_there_is_no_correction_where_the_gold_file_cannot_carry_one(error):
    assert corrected_share(20, 100, error) is None


def test_text_names_what_was_counted_and_how_wrong_it_may_be(tmp_path):
    file = write_lines(tmp_path / "t.jsonl", [sample(CRAFT), sample(WORLD)])
    text = coverage_text(cover([file, DEMO / "train.jsonl"]))
    assert f"{file}: 2 samples, by word lists" in text
    assert "train.jsonl: 105 samples, by their own tags" in text
    assert "precision  recall" in text
    assert "nothing is filtered" in text
    assert "file  " in text.split("Counts describe")[0].rsplit("\n\n", 2)[1]


def test_result_is_json(tmp_path):
    file = write_lines(tmp_path / "t.jsonl", [sample(CRAFT)])
    json.dumps(cover([file]).to_json(), allow_nan=False)


def test_subsets_and_numbers_of_types_have_their_error_beside_them():
    errors = measure_subsets(GOLD)
    n_right = sum(e.tp for name, e in errors.items() if not name.endswith("of 3"))
    assert n_right == 39  # the exact subset, of 60 samples tagged by hand
    for error in errors.values():
        assert error.tp + error.fp + error.fn + error.tn == 60
    text = coverage_text(cover([DEMO / "train.jsonl"], by="words"))
    (row,) = [line for line in text.splitlines() if line.strip().startswith("3 of 3")]
    assert f"{quality(errors['3 of 3']).recall.share:.2f}" in row
    assert "precision  recall" in text.split("\n\n")[1]
