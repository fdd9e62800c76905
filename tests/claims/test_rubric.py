"""The study of the rubric's gap: exact toys, both nulls, rows by transformers, refusals."""

import json
import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from claims.asking import MODEL, reference_stats
from helpers import read_lines, write_lines

from cqa.assets import STUDIES
from cqa.claims.claim import Asked
from cqa.claims.effects import effects
from cqa.claims.rubric.claim import RubricGap, measured
from cqa.claims.rubric.config import RubricConfig
from cqa.claims.rubric.terms import gains, gap, gap_of_last, moebius, orders
from cqa.claims.run import run_study
from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, DataError
from cqa.score.engine import SequenceStats

EXAMPLE = STUDIES / "rubric.jsonl"


class World:
    """An engine of a world in which texts and constraints are variables with two values.

    Of the item NAME the constraints say "NAME's A is 0." or "NAME's B is 1."; the texts are
    " yes" and " no". What another item's constraints say is independent of it.
    """

    pass_rows = 500

    def __init__(self, tokenizer: Tokenizer, joint: np.ndarray) -> None:
        self._tokenizer = tokenizer
        self._joint = joint  # p(x, a, b)

    def logp(self, context: str, text: str) -> float:
        *said, own = context.split("\n\n")
        known = {line[-7]: int(line[-2]) for line in said if line.startswith(f"{own}'s")}
        held = self._joint
        for axis, name in ((2, "B"), (1, "A")):
            at = slice(None) if name not in known else slice(known[name], known[name] + 1)
            held = held[(slice(None),) * axis + (at,)]
        p = held.sum((1, 2))
        return math.log(p[(" yes", " no").index(text)] / p.sum())

    def run(self, prefixes):
        found = {}
        for context, options in prefixes.sequences.items():
            for option in options:
                texts = self._tokenizer.decode(context), self._tokenizer.decode_following(option)
                found[context, option] = SequenceStats(
                    [self.logp(*texts)] + [0.0] * (len(option) - 1)
                )
        return found


NAMES = ("Ada", "Ben", "Cal", "Dee", "Eve", "Fay", "Gus", "Hal", "Ida", "Jim", "Kit", "Lee")


def of_world(tmp_path, joint, more=()):
    """Run the whole claim on a world: return its rows and result."""
    lines = [
        {
            "id": name, "context": name, "good": " yes", "bad": " no", "source_id": name,
            "constraints": [f"{name}'s A is {k % 2}.", f"{name}'s B is {k // 2 % 2}.", *more],
            "paraphrase": f"{name}'s A A is {k % 2}.",
        }
        for k, name in enumerate(NAMES)
    ]  # fmt: skip
    path = write_lines(tmp_path / "world.jsonl", lines)
    claim = RubricGap(RubricConfig(model="none", pairs=(path,), out=tmp_path / "out"))
    tokenizer = Tokenizer(MODEL)
    tasks = claim.tasks(tokenizer, 1024)
    rows = {None: claim.compute(World(tokenizer, joint), tasks, Asked("key", None))}
    return rows[None], claim.result(rows)


def test_constraints_that_are_independent_given_the_text_leave_no_gap(tmp_path):
    x, a, b = (
        np.array([0.7, 0.3]),
        np.array([[0.9, 0.1], [0.2, 0.8]]),
        np.array([[0.6, 0.4], [0.3, 0.7]]),
    )
    joint = x[:, None, None] * a[:, :, None] * b[:, None, :]
    rows, result = of_world(tmp_path, joint)
    of_both = joint.sum(0)
    for k, row in enumerate(rows):
        good, bad = gap(row.good_gains_nats), gap(row.bad_gains_nats)
        assert good == pytest.approx(bad, abs=1e-12)
        # not 0: given no text the two constraints depend on each other
        of_a, of_b = of_both.sum(1)[k % 2], of_both.sum(0)[k // 2 % 2]
        assert good == pytest.approx(math.log(of_a * of_b / of_both[k % 2, k // 2 % 2]), abs=1e-12)
        assert abs(good) > 0.01
        assert gap(row.good_other_gains_nats) == pytest.approx(0, abs=1e-12)
    assert {f.mark for f in result.findings} <= {"n/a", "not shown"}
    assert (
        max(abs(e.value) for e in result.effects if e.name in ("gap", "mismatched", "excess"))
        < 1e-12
    )


def test_a_text_that_is_the_exclusive_or_of_two_constraints_is_all_gap(tmp_path):
    x, a, b = np.ogrid[:2, :2, :2]
    joint = np.where(x == (a ^ b), 0.95, 0.05) / 4
    rows, result = of_world(tmp_path, joint)
    for k, row in enumerate(rows):
        sign = 1 if (k % 2) ^ (k // 2 % 2) == 0 else -1  # " yes" is value 0
        assert row.good_gains_nats[1:3] == pytest.approx((0, 0), abs=1e-12)
        assert gap(row.good_gains_nats) == pytest.approx(math.log(2 * (0.95 if sign > 0 else 0.05)))
        difference = gap(row.good_gains_nats) - gap(row.bad_gains_nats)
        assert difference == pytest.approx(sign * math.log(19))
        assert row.good_terms_nats[3] == pytest.approx(gap(row.good_gains_nats))
        assert gap(row.good_other_gains_nats) == pytest.approx(0, abs=1e-12)
    effect = {e.name: e.value for e in result.effects}
    assert effect["excess"] == pytest.approx(effect["gap"]) == pytest.approx(effect["term_12"])


def test_a_paraphrase_is_redundant_by_what_the_first_says(tmp_path):
    joint = np.array([[[0.4, 0.1], [0.05, 0.05]], [[0.05, 0.05], [0.1, 0.2]]])
    rows, result = of_world(tmp_path, joint)
    for row in rows:
        of_first, of_paraphrase, of_both = row.good_paraphrase_gains_nats[1:]
        assert of_first == of_both == of_paraphrase
        assert gap(row.good_paraphrase_gains_nats) == pytest.approx(-row.good_gains_nats[1])
    (redundant,) = [e for e in result.effects if e.name == "redundant"]
    assert redundant.part == "null"
    assert redundant.value == pytest.approx(-np.mean([r.good_gains_nats[1] for r in rows]))


def test_terms_are_the_inclusion_exclusion_sums_and_add_up():
    values = np.random.default_rng(3).normal(size=16)
    values[0] = 0
    terms = moebius(values)
    for mask in range(16):
        parts = [r for r in range(16) if r & mask == r]
        expected = sum((-1) ** (mask ^ r).bit_count() * values[r] for r in parts)
        assert terms[mask] == pytest.approx(expected)
        assert sum(terms[r] for r in parts) == pytest.approx(values[mask])
    assert gap(values) == pytest.approx(sum(t for m, t in enumerate(terms) if m.bit_count() > 1))
    assert gap_of_last(values) == pytest.approx(sum(terms[m] for m in range(9, 16)))
    assert [len(list(orders("abcd"[:k]))) for k in (2, 3, 4)] == [5, 16, 65]


def test_a_gain_is_the_mean_over_orders():
    logp = {o: float(k) for k, o in enumerate(orders("abc"))}
    found = gains("abc", lambda order: logp[order])
    assert found[0b101] == np.mean([logp["a", "c"], logp["c", "a"]]) - logp[()]
    assert found[0b111] == pytest.approx(np.mean([logp[o] for o in permutations("abc")]) - logp[()])


def test_the_example_runs_and_its_rows_are_those_of_transformers(tmp_path, trained):
    adapter = trained / "epoch-02"
    few = write_lines(tmp_path / "few.jsonl", read_lines(EXAMPLE)[:4])
    config = RubricConfig(
        model=str(MODEL), adapter=(adapter,), pairs=(few,), out=tmp_path / "out", device="cpu"
    )
    run_study(RubricGap(config), config)
    rows = {(r["id"], r["adapter"]): r for r in read_lines(config.out / "rows.jsonl")}
    item = read_lines(EXAMPLE)[0]

    def logp(order, text, path=None) -> float:
        return reference_stats("\n\n".join([*order, item["context"]]), text, path)[0]

    expected = gains(item["constraints"], lambda order: logp(order, item["good"]))
    assert len(expected) == 4
    row = rows["rubric-01", None]
    assert row["good_gains_nats"] == pytest.approx(expected, abs=2e-4)
    assert row["good_terms_nats"] == pytest.approx(moebius(expected), abs=4e-4)
    first = (item["constraints"][0],)
    gain = logp(first, item["bad"], adapter) - logp((), item["bad"], adapter)
    assert rows["rubric-01", "epoch-02"]["bad_gains_nats"][1] == pytest.approx(gain, abs=2e-4)


def test_the_whole_example_has_what_the_study_needs(tmp_path):
    items = read_lines(EXAMPLE)
    assert len({item["source_id"] for item in items}) >= 12
    config = RubricConfig(model=str(MODEL), pairs=(EXAMPLE,), out=tmp_path / "out", device="cpu")
    result = run_study(RubricGap(config), config)
    by_name = {e.name: e for e in result.effects}
    assert by_name["excess"].n_sources == len(items) == by_name["excess"].n
    assert by_name["redundant"].n == sum("paraphrase" in item for item in items)
    assert by_name["term_123"].n == sum(len(item["constraints"]) > 2 for item in items)
    assert by_name["excess"].value == pytest.approx(
        by_name["gap"].value - by_name["mismatched"].value
    )
    assert any("`paraphrase` is not seen to be redundant" in note for note in result.notes) == (
        by_name["redundant"].p >= 0.05
    )
    assert result.findings[0].mark in ("shown", "not shown", "against")
    assert (config.out / "figure.svg").read_bytes().startswith(b"<?xml")
    assert json.loads((config.out / "study.json").read_text())["study"] == "rubric"


def test_of_noise_about_one_in_twenty_is_shown(tmp_path, rows_of_noise):
    rejected = 0
    for seed in range(200):
        rows = rows_of_noise(np.random.default_rng(seed))
        (excess,) = [m for m in measured({None: rows}) if m.name == "excess"]
        (effect,) = effects([excess], ["g"] * len(rows), [r.source_id for r in rows])
        rejected += effect.p < 0.05
    assert 0 < rejected / 200 <= 0.075


@pytest.fixture
def rows_of_noise(tmp_path):
    """Return a function that draws rows whose matched and mismatched numbers have one law."""
    rows, _ = of_world(tmp_path, np.full((2, 2, 2), 1 / 8))

    def draw(rng):
        drawn = []
        for k, row in enumerate(list(rows) * 2):
            source = rng.standard_t(4, 4)  # what the items of a source share
            values = source + rng.standard_t(4, (4, 4))
            names = ("good_gains", "bad_gains", "good_other_gains", "bad_other_gains")
            changed = {f"{n}_nats": tuple(v) for n, v in zip(names, values, strict=True)}
            drawn.append(replace(row, source_id=f"s{k % 12}", **changed))
        return drawn

    return draw


ITEMS = [
    {
        "id": f"r{k}", "source_id": f"s{k}", "context": "She looked out",
        "good": f" and {word}.", "bad": " and sat down.",
        "constraints": [f"She {word} often.", f"It was the {word} hour."],
    }
    for k, word in enumerate(["ran", "wept", "slept"])
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"constraints": None}, "got: no `constraints`"),
        (
            {"good": None, "bad": None, "options": ["a", "b"], "answer": 1},
            "one `good` and one `bad`, got 2",
        ),
        ({"constraints": None}, r"bad\.jsonl:2: expected `constraints` to be an array of 2 to 4"),
        ({"constraints": ["one"]}, r"bad\.jsonl:2: expected `constraints` .* got: 1 of them"),
        ({"constraints": list("abcde")}, r"bad\.jsonl:2: expected `constraints` .* got: 5 of them"),
        ({"constraints": ["a", "a"]}, r"bad\.jsonl:2: expected constraints that differ"),
        ({"constraints": ["a", 3]}, r"bad\.jsonl:2: expected text in `constraints\[1\]`"),
        ({"constraints": ["a", "word " * 5000]}, r"bad\.jsonl:2: expected at most \d+ tokens"),
        ({"constraints": ["a", "<|endoftext|>"]}, r"bad\.jsonl:2: expected a text without control"),
        (
            {"paraphrase": "She wept often."},
            r"bad\.jsonl:2: expected `paraphrase` to say the first",
        ),
        ({"bad": ["a", "b"]}, r"bad\.jsonl:2: expected a pair .* `bad`, got 3 options"),
        ({"id": "r0"}, r"bad\.jsonl:2: expected each id once"),
        (
            {"constraints": ["It was the ran hour.", "It was the slept hour."], "source_id": "s0"},
            r"bad\.jsonl:1: expected last constraints that can be dealt",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, change, said):
    bad = {k: v for k, v in {**ITEMS[1], **change}.items() if v is not None}
    pairs = write_lines(tmp_path / "bad.jsonl", [ITEMS[0], bad, *ITEMS[2:]])
    config = RubricConfig(model=str(MODEL), pairs=(pairs,), out=tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match=said):
        run_study(RubricGap(config), config)
    assert not config.out.exists()


def test_no_item_gets_a_constraint_that_it_has_itself(tmp_path):
    """The nearest text in length is a constraint of the item's own already."""
    lines = [{**item, "constraints": list(item["constraints"])} for item in ITEMS]
    lines[0]["constraints"][0] = lines[1]["constraints"][1]
    path = write_lines(tmp_path / "items.jsonl", lines)
    claim = RubricGap(RubricConfig(model="none", pairs=(path,), out=tmp_path / "out"))
    others = {task.id: task.content.other for task in claim.tasks(Tokenizer(MODEL), 1024)}
    last = [line["constraints"][1] for line in lines]
    assert others == {"r0": last[2], "r1": last[0], "r2": last[1]}


def test_an_input_inside_the_output_folder_is_refused(tmp_path):
    pairs = write_lines(tmp_path / "items.jsonl", ITEMS)
    config = RubricConfig(model=str(MODEL), pairs=(pairs,), out=tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="expected --out to hold no input, got --pairs"):
        run_study(RubricGap(config), config)
