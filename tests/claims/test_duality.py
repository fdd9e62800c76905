"""The study of duality: an exact joint both ways, transfer beside its null, refusals."""

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import permutations

import numpy as np
import pytest
from claims.asking import MODEL, reference_stats
from claims.duality_rows import EXAMPLE, config_of, rows_of
from helpers import read_lines, write_lines
from scipy.stats import spearmanr

from cqa.claims.claim import Asked
from cqa.claims.duality.claim import Duality, scored
from cqa.claims.duality.config import DualityConfig
from cqa.claims.duality.nearness import Choices, nearer_shares
from cqa.claims.duality.symmetry import symmetry_outcome
from cqa.claims.duality.transfer import dealt_correlations, transfer_outcome
from cqa.claims.run import run_study
from cqa.claims.sequences import n_fed, score_sequences
from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, DataError
from cqa.score.adapters import find_adapters
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.engine import SequenceStats
from cqa.stats.association import concordance


@pytest.fixture
def settings(tmp_path):
    return partial(config_of, tmp_path)


@pytest.fixture(scope="module")
def engine() -> DecoderEngine:
    found = DecoderEngine(MODEL, [], device="cpu", dtype="fp32")
    found.open()
    return found


def test_texts_end_where_the_model_ends_them(settings, engine):
    claim = Duality(settings(samples=2, max_tokens=4))
    tasks = claim.tasks(Tokenizer(MODEL), 1024)
    assert claim.inputs()["end_ids"]
    (row,) = claim.compute(engine, tasks[:1], Asked("key", None))
    texts = tasks[0].content
    drawn = 5 * len(texts.context) + 2 * 3 * 2 * 3
    option_tokens = sum(len(ids) - 1 for ids in (*texts.choices.own, *texts.choices.other))
    read = len(texts.context) + option_tokens + 2 * (len(texts.context) + 4 + option_tokens)
    assert tasks[0].n_tokens == n_fed(texts.pairs) + drawn + read == row.n_tokens


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bad": [" a", " b"]}, r"bad\.jsonl:2: expected one good and one bad text, got 3 texts"),
        ({"context": "word " * 5000}, r"bad\.jsonl:2: expected at most \d+ tokens"),
        ({"context": "a<|endoftext|>"}, r"bad\.jsonl:2: expected a text without control"),
        (
            {"context": "word " * 990},
            r"bad\.jsonl:2: expected at most 1024 tokens of context, drawn",
        ),
        ({"id": "duality-01"}, r"bad\.jsonl:2: expected each id once"),
    ],
)
def test_bad_lines_are_named(settings, tmp_path, change, said):
    lines = read_lines(EXAMPLE)
    pairs = write_lines(tmp_path / "bad.jsonl", [lines[0], {**lines[1], **change}, *lines[2:]])
    config = settings(pairs=(pairs,))
    with pytest.raises(DataError, match=said):
        run_study(Duality(config), config)
    assert not config.out.exists()


def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="expected samples from 1"):
        settings(samples=0)
    with pytest.raises(ConfigError, match="expected max-tokens from 1"):
        settings(max_tokens=0)


class Urn:
    """An engine of Pólya's urn: a token that was seen is put back with another one of its kind.

    The order of tokens says nothing, so that texts have one joint law whichever comes first.
    """

    pass_rows = 500

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._outside = {*tokenizer.null_ids, *tokenizer.bos_ids}
        self._vocabulary = vocabulary

    def run(self, prefixes):
        found = {}
        for context, options in prefixes.sequences.items():
            for option in options:
                seen = [token for token in context if token not in self._outside]
                logp = []
                for token in option:
                    share = (0.01 + seen.count(token)) / (0.01 * self._vocabulary + len(seen))
                    logp.append(math.log(share))
                    seen.append(token)
                found[context, option] = SequenceStats(logp)
        return found


def of_urn(settings, tmp_path):
    """Return rows of texts whose own context has some of their words."""
    lines = [{**line, "good": f" {line['context']}{line['good']}"} for line in read_lines(EXAMPLE)]
    claim = Duality(settings(pairs=(write_lines(tmp_path / "urn.jsonl", lines),)))
    tokenizer = Tokenizer(MODEL)
    tasks = claim.tasks(tokenizer, 1024)
    found = score_sequences(Urn(tokenizer, 50_000), (p for t in tasks for p in t.content.pairs))
    like = rows_of(np.random.default_rng(0), n_rows=len(tasks))
    return [
        replace(row, source_id=task.source_id, group="g", **scored(task.content, found))
        for row, task in zip(like, tasks, strict=True)
    ]


def test_an_exact_joint_is_the_same_both_ways(settings, tmp_path):
    rows = of_urn(settings, tmp_path)
    for row in rows:
        assert row.forward_nats > 1
        assert row.forward_nats == pytest.approx(row.reverse_nats, abs=1e-12 * 100)
        assert row.other_forward_nats == pytest.approx(row.other_reverse_nats, abs=1e-12 * 100)
    found, said = symmetry_outcome({None: rows})
    by_name = {e.name: e.value for e in found}
    assert by_name["gap"] == pytest.approx(0, abs=1e-12)
    assert by_name["other_gap"] == pytest.approx(0, abs=1e-12)
    assert by_name["concordance"] == pytest.approx(1, abs=1e-12)
    assert by_name["excess_forward"] == pytest.approx(by_name["excess_reverse"], abs=1e-12)
    assert [(f.name, f.mark) for f in said] == [("both ways alike", "shown")]


def symmetry_rows(rng, forward, reverse, n=24):
    """Return rows whose excess in the two directions has these means, within sources of two."""
    (row,) = rows_of(np.random.default_rng(0), n_rows=1, n_tokens=2)
    noise = rng.normal(0, 1, (n // 2, 4)).repeat(2, axis=0) + rng.normal(0, 1, (n, 4))
    return [
        replace(
            row, id=f"r{k}", source_id=f"s{k // 2}", given_nats=(forward + e[0], 0.0),
            reverse_nats=reverse + e[1], other_forward_nats=e[2], other_reverse_nats=e[3],
        )
        for k, e in enumerate(noise)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("forward", "reverse", "mark"),
    [(6, 6, "shown"), (6, 5, "shown"), (6, 0, "against"), (0, 6, "against"), (0, 0, "not shown")],
)
def test_alike_is_both_positive_and_neither_twice_the_other(forward, reverse, mark):
    rows = symmetry_rows(np.random.default_rng(1), forward, reverse, 48)
    (found,) = symmetry_outcome({None: rows})[1]
    assert found.mark == mark


def test_where_one_way_is_half_the_other_about_one_in_twenty_is_called_alike():
    marks = []
    for seed in range(100):
        rows = symmetry_rows(np.random.default_rng(seed), 8.0, 4.0)
        marks.append(symmetry_outcome({None: rows})[1][0].mark)
    assert 0 < marks.count("shown") / 100 <= 0.09


def test_both_ways_have_to_gain():
    rng = np.random.default_rng(2)
    base = symmetry_rows(rng, 4, 4)

    def mark(forward, reverse) -> str:
        after = [replace(r, adapter="a") for r in symmetry_rows(rng, forward, reverse)]
        said = symmetry_outcome({None: base, "a": after})[1]
        return {f.name: f.mark for f in said if f.adapter == "a"}["more both ways"]

    assert mark(7, 7) == "shown"
    assert mark(7, 4) == "not shown"
    assert mark(7, 1) == "against"


def test_lins_concordance_is_of_its_definition():
    x, y = np.random.default_rng(0).normal(size=(2, 9))
    weights = np.array([[1.0] * 9, [2, 0, 1, 1, 3, 1, 0, 1, 0]])
    assert np.isnan(concordance(x, y)(np.zeros((1, 9)))).all()
    for w, found in zip(weights, concordance(x, y)(weights), strict=True):
        a, b = x.repeat(w.astype(int)), y.repeat(w.astype(int))
        expected = 2 * np.cov(a, b, bias=True)[0, 1]
        expected /= a.var() + b.var() + (a.mean() - b.mean()) ** 2
        assert found == pytest.approx(expected)
    assert concordance(x, x)(weights) == pytest.approx([1, 1])
    assert np.isnan(concordance([2.0] * 9, [2.0] * 9)(weights)).all()


def transfer_rows(rng, slope, n=24):
    """Return rows of base and adapter: d_prior is `slope` times d_cond, and noise."""
    base = symmetry_rows(rng, 0, 0, n)
    cond = rng.normal(0, 1, n)
    prior = slope * cond + rng.normal(0, 1, n)
    after = [
        replace(
            row, adapter="a", source_id=f"s{k}", null_nats=(prior[k], 0.0),
            given_nats=(row.given_nats[0] + cond[k], 0.0),
        )
        for k, row in enumerate(base)
    ]  # fmt: skip
    return {None: [replace(row, source_id=f"s{k}") for k, row in enumerate(base)], "a": after}


def test_transfer_is_of_what_exceeds_the_part_that_is_built_in():
    found, (said,) = transfer_outcome(transfer_rows(np.random.default_rng(0), 0.0))
    by_name = {e.name: e.value for e in found}
    assert by_name["transfer"] > 0.3  # though d_prior has nothing to do with it
    assert by_name["transfer"] - by_name["transfer_dealt"] == by_name["transfer_excess"]
    assert said.mark == "not shown"
    (said,) = transfer_outcome(transfer_rows(np.random.default_rng(0), -3.0))[1]
    assert said.mark == "shown"
    (said,) = transfer_outcome(transfer_rows(np.random.default_rng(0), 3.0))[1]
    assert said.mark == "against"
    few, (said,) = transfer_outcome(transfer_rows(np.random.default_rng(0), 0.0, n=8))
    assert (said.mark, few[-1].p) == ("n/a", None)
    assert "8 sources, of 10" in said.reason


def test_dealt_correlations_are_spearmans_of_permuted_numbers():
    rng = np.random.default_rng(0)
    moved, cond, prior = rng.normal(size=(3, 5))
    found = dealt_correlations(moved, cond, prior)
    assert found.rho == pytest.approx(spearmanr(moved, cond - prior).statistic)
    exact = [
        spearmanr(moved, cond - prior[list(order)]).statistic for order in permutations(range(5))
    ]
    assert found.drawn.mean() == pytest.approx(np.mean(exact), abs=0.01)
    assert found.drawn.std() == pytest.approx(np.std(exact), abs=0.01)
    assert dealt_correlations(moved, cond, np.ones(5)) is None
    assert dealt_correlations(np.ones(5), cond, prior) is None


def test_of_changes_without_transfer_about_one_in_twenty_is_shown():
    rejected = 0
    for seed in range(150):
        rows = transfer_rows(np.random.default_rng(seed), 0.0)
        rejected += transfer_outcome(rows)[1][0].mark == "shown"
    assert 0 < rejected / 150 <= 0.085


def test_scores_both_ways_are_those_of_transformers(settings, trained, tmp_path):
    adapter = trained / "epoch-02"
    lines = read_lines(EXAMPLE)[:3]
    pairs = write_lines(tmp_path / "few.jsonl", lines)
    config = settings(adapter=(adapter,), pairs=(pairs,), samples=1, max_tokens=2)
    result = run_study(Duality(config), config)
    rows = {(r["id"], r["adapter"]): r for r in read_lines(config.out / "rows.jsonl")}
    first, null = lines[0], Tokenizer(MODEL).decode(Tokenizer(MODEL).null_ids)

    def logp(context, text, path=None) -> float:
        return reference_stats(context, text, path)[0]

    row = rows["duality-01", None]
    y, x, b = first["context"], first["good"], first["bad"]
    assert row["given_nats"] == pytest.approx([logp(y, x), logp(y, b)], abs=1e-4)
    assert row["reverse_nats"] == pytest.approx(logp(x, y) - logp(null, y), abs=2e-4)
    assert row["null_nats"] == pytest.approx([logp(null, x), logp(null, b)], abs=1e-4)
    others = [line["good"] for line in lines[1:]]
    forward = [logp(y, other) - logp(null, other) for other in others]
    assert min(abs(row["other_forward_nats"] - f) for f in forward) < 2e-4
    after = rows["duality-01", "epoch-02"]
    assert after["given_nats"] == pytest.approx(
        [logp(y, x, adapter), logp(y, b, adapter)], abs=1e-4
    )
    assert {f.name for f in result.findings if f.adapter} == {
        "both ways alike", "more both ways", "drawn", "transfer", "free texts nearer",
        "more of them nearer",
    }  # fmt: skip


class Reader:
    """An engine for which the good text follows the word of its item."""

    pass_rows = 500

    def __init__(self, favoured: dict[int, int]) -> None:
        self.favoured = favoured  # of a token in the context, the option that it makes likelier
        self.base = self.decoder = self

    def silenced_adapter(self):
        return nullcontext()

    def run(self, prefixes):
        return {
            (context, option): SequenceStats(
                [-1.0 + sum(self.favoured.get(token) == option[0] for token in context)]
            )
            for context, options in prefixes.sequences.items()
            for option in options
        }


def test_a_free_text_is_near_what_it_makes_likelier_than_it_was():
    good, bad, other_good, other_bad = (10,), (11,), (12,), (13,)
    one = Choices((1, 2), (good, bad), (other_good, other_bad))
    reader = Reader({1: 10, 5: 10, 6: 11, 7: 13})  # the context itself favours the good one
    (shares,) = nearer_shares(reader, [one], {(1, 2): [(5,), (5, 9), (6,), (9,), (), (7,)]})
    assert shares == pytest.approx(((2 + 0.5 * 3) / 6, (0.5 * 5) / 6))


def test_the_base_reads_what_an_adapter_wrote(trained):
    adapter = find_adapters(
        DualityConfig(
            model=str(MODEL), adapter=(trained / "epoch-02",), pairs=(EXAMPLE,), out=EXAMPLE
        )
    )
    engine = DecoderEngine(MODEL, adapter, device="cpu", dtype="fp32")
    engine.open()
    tokenizer = Tokenizer(MODEL)
    pair = (tokenizer.encode_context("She looked out"), tokenizer.encode_following(" and ran."))

    def score() -> float:
        return score_sequences(engine, [pair])[pair].total

    engine.use(None)
    base = score()
    engine.use(adapter[0])
    own = score()
    with engine.base.decoder.silenced_adapter():
        assert score() == pytest.approx(base, abs=1e-5)
    assert score() == own != pytest.approx(base, abs=1e-3)


def test_texts_of_one_source_cannot_be_dealt(settings, tmp_path):
    lines = [{**line, "source_id": "one"} for line in read_lines(EXAMPLE)]
    config = settings(pairs=(write_lines(tmp_path / "one.jsonl", lines),))
    with pytest.raises(DataError, match="of other sources, got too many of one source"):
        run_study(Duality(config), config)
