"""The study of audience fit: toys known exactly, the law of the dealings, ranks, rows, refusals."""

import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from claims.asking import MODEL, reference_stats
from helpers import read_lines, write_lines
from scipy import stats

from cqa.assets import STUDIES
from cqa.claims.claim import Asked
from cqa.claims.effects import finding
from cqa.claims.fit.claim import Fit
from cqa.claims.fit.config import FitConfig
from cqa.claims.fit.measures import FitRow
from cqa.claims.fit.residual import (
    centred,
    dealings,
    n_dealings,
    rank_intervals,
    ranks,
    share_law,
    standardised,
    tested_shares,
)
from cqa.claims.run import run_study
from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, DataError
from cqa.score.engine import SequenceStats

WORKS, AUDIENCES = STUDIES / "fit_works.jsonl", STUDIES / "fit_audiences.jsonl"
SIZES = (3, 3, 3)


def noise(rng, n_works=6, n=9):
    """Draw works whose noise is alike among some of them, heavy in its tails."""
    shared = rng.standard_t(4, (1, n)) * rng.choice([-1, 1], (n_works, 1))
    return shared + rng.standard_t(3, (n_works, n))


def additive(rng, n_works=6, n=9):
    return rng.normal(0, 9, (n_works, 1)) + rng.normal(0, 5, (1, n))


@pytest.mark.parametrize("sizes", [(3, 3), (3, 3, 3), (3, 4), (2, 1, 2, 1)])
def test_dealings_are_all_of_them_and_each_once(sizes):
    found = dealings(sizes)
    starts = np.cumsum([0, *sizes])

    def groups(order):
        return frozenset(frozenset(order[a:b]) for a, b in itertools.pairwise(starts))

    every = (
        {groups(order) for order in itertools.permutations(range(sum(sizes)))}
        if sum(sizes) < 8
        else None
    )
    seen = [groups(tuple(order)) for order in found.columns]
    assert list(found.columns[0]) == list(range(sum(sizes)))
    assert found.exact
    assert len(set(seen)) == len(seen) == n_dealings(sizes)
    assert every is None or set(seen) == every


def test_many_dealings_are_drawn_and_hold_that_of_the_data():
    found = dealings([4] * 5)
    assert not found.exact
    assert len(found) == 10_000
    assert list(found.columns[0]) == list(range(20))
    assert all(Counter(order) == Counter(range(20)) for order in found.columns[::997].tolist())


def test_the_share_is_that_of_one_way_anova_and_its_mean_is_known():
    rng = np.random.default_rng(1)
    columns = noise(rng) + additive(rng)
    residual = standardised(columns)
    law = share_law(residual, dealings(SIZES))
    assert residual.sum(1) == pytest.approx(np.zeros(6), abs=1e-12)
    between = within = 0.0
    for row in residual:
        groups = np.split(row, 3)
        between += sum(3 * (g.mean() - row.mean()) ** 2 for g in groups)
        within += sum(((g - g.mean()) ** 2).sum() for g in groups)
    assert law[0] == pytest.approx(between / (between + within))
    assert law.mean() == pytest.approx(2 / 8)  # (A - 1) / (N - 1), by symmetry
    share = tested_shares({None: columns}, dealings(SIZES))[None]
    assert share.ratio == pytest.approx(between / within)
    assert share.p == pytest.approx(np.mean(law >= law[0] - 1e-12))
    one = rng.normal(size=(1, 9))  # of one row of two groups it is the F test's order
    f = [stats.f_oneway(o[:3], o[3:]).statistic for o in one[0, dealings((3, 6)).columns]]
    two = np.concatenate([one, -one])
    assert np.argsort(f).tolist() == np.argsort(share_law(two, dealings((3, 6)))).tolist()


def test_works_and_wordings_that_only_add_have_no_residual():
    columns = additive(np.random.default_rng(2))
    assert np.abs(centred(columns)).max() < 1e-13
    share = tested_shares({None: columns}, dealings(SIZES))[None]
    assert (share.value, share.p, share.ratio, share.excess) == (None, None, None, None)
    assert share.untested == "no residual that dealing changes"


def test_of_noise_about_one_in_twenty_is_shown_under_any_of_three_models():
    ways, rejected, p_first = dealings(SIZES), 0, []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        base = noise(rng)
        models = {None: base + additive(rng), "a": base + noise(rng), "b": 3 * noise(rng)}
        found = tested_shares(models, ways)
        rejected += min(share.p for share in found.values()) < 0.05
        p_first.append(tested_shares({None: base}, ways)[None].p)
    assert rejected / 400 <= 0.075
    assert stats.kstest(p_first, "uniform").pvalue > 0.01
    assert 0.03 <= np.mean(np.array(p_first) < 0.05) <= 0.075


@pytest.mark.parametrize("spread", [(3, 1, 1), (1, 1, 3), (1 / 3, 1, 1)])
def test_wild_wordings_of_one_audience_are_no_fit(spread):
    sizes = (3, 3, 6)
    ways, rejected = dealings(sizes), 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        wild = rng.standard_t(5, (12, 12)) * np.repeat(spread, sizes)
        columns = wild + additive(rng, 12, 12)
        rejected += tested_shares({None: columns}, ways)[None].p < 0.05
    assert rejected / 200 <= 0.075


def test_the_size_of_a_wording_changes_no_share():
    rng = np.random.default_rng(9)
    columns = noise(rng)
    columns -= columns.mean(0)
    residual = standardised(columns)
    # once without the mean of the works it is the same up to how that mean is weighed
    assert (residual**2).sum(0).max() / (residual**2).sum(0).min() < 2
    shifted = standardised(columns + 7 + rng.normal(size=(1, 9)) + rng.normal(size=(6, 1)))
    assert shifted == pytest.approx(residual)
    one_is_still = columns - columns.mean(1, keepdims=True)
    one_is_still[:, 4] = 0
    assert np.isfinite(standardised(one_is_still)).all()


def test_a_planted_fit_is_found_and_ranked():
    rng = np.random.default_rng(5)
    fit = np.kron(np.eye(3), np.ones((2, 3)))  # works 0 and 1 are the first audience's …
    columns = additive(rng) + 2 * fit + 0.2 * noise(rng)
    share = tested_shares({None: columns}, dealings(SIZES))[None]
    assert share.p == 1 / 280
    assert share.value > 0.8
    means = np.stack([part.mean(1) for part in np.split(columns, 3, axis=1)], axis=1)
    places, bounds = ranks(centred(means)), rank_intervals(columns, SIZES)
    assert [int(places[w, w // 2]) for w in range(6)] == [1] * 6
    assert [bounds[w, w // 2].tolist() for w in range(6)] == [[1, 1]] * 6
    assert (bounds[..., 0] <= places).all()
    assert (places <= bounds[..., 1]).all()
    assert (bounds[..., 1] > bounds[..., 0]).any()  # the other two may change places


def test_wordings_alike_across_audiences_are_against():
    rng = np.random.default_rng(6)
    style = np.tile(rng.normal(size=(6, 3)), 4)  # the first wording of each is formal …
    share = tested_shares({None: style + 0.1 * noise(rng, 6, 12)}, dealings((3,) * 4))[None]
    assert share.p > 0.9
    assert share.p_against < 0.05


def test_intervals_of_ranks_are_those_of_a_plain_bootstrap():
    rng = np.random.default_rng(8)
    columns = noise(rng, 2, 7)
    drawn = []
    for _ in range(4000):
        picked = [columns[:, rng.integers(a, b, b - a)].mean(1) for a, b in ((0, 3), (3, 7))]
        means = np.stack(picked, axis=1)
        drawn.append(stats.rankdata(-centred(means), axis=1))
    expected = np.quantile(drawn, [0.025, 0.975], axis=0, method="inverted_cdf")
    assert (rank_intervals(columns, (3, 4)) == np.moveaxis(expected, 0, 2)).all()


class World:
    """An engine in which a score is a sum of effects, and of a fit where one is planted.

    Works are "work 3", wordings "reader 1 wording 2"; its numbers are those of `table`.
    """

    pass_rows = 500

    def __init__(self, tokenizer, table) -> None:
        self._tokenizer, self._table = tokenizer, table

    def run(self, prefixes):
        found = {}
        for context, options in prefixes.sequences.items():
            before = self._tokenizer.decode(context).strip().split()
            for option in options:
                work = int(self._tokenizer.decode_following(option).split()[1])
                logp = -50.0
                if before[0] in ("reader", "nobody"):
                    logp += self._table[work, 3 * int(before[1]) + int(before[3])] * (
                        before[0] == "reader"
                    )
                found[context, option] = SequenceStats([logp] + [0.0] * (len(option) - 1))
        return found


def of_world(tmp_path, table, adapter=None):
    """Run the whole claim on tables of the base and of an adapter."""
    n_works, n = table.shape
    works = [{"id": f"w{k}", "text": f"work {k}"} for k in range(n_works)]
    readers = [
        {"id": f"a{a}", "wordings": [f"reader {a} wording {j}" for j in range(3)]}
        for a in range(n // 3)
    ]
    nobody = {"id": "n", "nobody": True, "wordings": [f"nobody 0 wording {j}" for j in range(3)]}
    config = FitConfig(
        model="none", works=(write_lines(tmp_path / "works.jsonl", works),), out=tmp_path / "out",
        audiences=(write_lines(tmp_path / "audiences.jsonl", [*readers, nobody]),),
    )  # fmt: skip
    claim, tokenizer = Fit(config), Tokenizer(MODEL)
    tasks = claim.tasks(tokenizer, 1024)
    tables = {None: table} | ({} if adapter is None else {"epoch-01": adapter})
    rows = {
        name: claim.compute(World(tokenizer, held), tasks, Asked("key", name))
        for name, held in tables.items()
    }
    return rows, claim.result(rows)


def marks(result, name):
    return {f.adapter: f.mark for f in result.findings if f.name == name}


def test_the_claim_finds_nothing_where_effects_only_add(tmp_path):
    table = additive(np.random.default_rng(3), 10)
    rows, result = of_world(tmp_path, table)
    values = [[v for held in row.information_nats.values() for v in held] for row in rows[None]]
    assert np.array(values) == pytest.approx(table)
    assert marks(result, "fit") == {None: "n/a"}
    assert max(abs(p.residual_nats) for p in result.placed) < 1e-10
    assert [r.n_bytes for r in rows[None]] == [6] * 10


def test_the_claim_finds_a_planted_fit_and_what_an_adapter_does_to_it(tmp_path):
    rng = np.random.default_rng(4)
    fit = np.kron(np.eye(3), np.ones((4, 3)))[:10]
    base = 40 + additive(rng, 10) + 0.3 * noise(rng, 10)
    _, result = of_world(tmp_path, base, base + 3 * fit + 0.1 * noise(rng, 10))
    assert marks(result, "fit") == {None: "not shown", "epoch-01": "shown"}
    assert marks(result, "fit_changed") == {"epoch-01": "shown"}
    assert marks(result, "reader") == {None: "shown", "epoch-01": "shown"}
    by_name = {(e.name, e.adapter): e for e in result.effects}
    change = by_name["fit_change", "epoch-01"]
    assert (change.part, change.p) == ("change", 1 / 280)
    assert finding("x", change).mark == "shown"
    assert by_name["fit", None].part == "excess"
    assert by_name["fit", None].value == pytest.approx(
        by_name["share", None].value - by_name["dealt", None].value
    )
    information = np.mean([p.information_nats for p in result.placed if p.adapter is None])
    assert by_name["information_sum", None].value == pytest.approx(information)
    assert by_name["nobody_sum", None].value == pytest.approx(0, abs=1e-12)
    first = [p for p in result.placed if p.adapter == "epoch-01" and p.rank == 1]
    assert [(p.id, p.audience) for p in first] == [(f"w{k}", f"a{k // 4}") for k in range(10)]


def test_two_audiences_of_three_wordings_cannot_be_tested(tmp_path):
    _, result = of_world(tmp_path, noise(np.random.default_rng(1), 10, 6))
    (found,) = [f for f in result.findings if f.name == "fit"]
    assert found.mark == "n/a"
    assert found.reason.endswith("10 ways to deal the wordings, of 20 that the test needs")


def test_in_sums_a_long_work_answers_more_and_per_byte_it_does_not(tmp_path):
    """An audience under which every byte gains the same fits no work; per byte that is seen."""
    rows, _ = of_world(tmp_path, np.zeros((10, 12)))
    gain = np.repeat([0.1, 0.2, 0.3, 0.4], 3) + np.tile([0.0, 0.01, 0.02], 4)
    longer = []
    for k, row in enumerate(rows[None]):
        values = np.split((10 + 7 * k) * gain, 4)
        information = {name: tuple(v) for name, v in zip(row.information_nats, values, strict=True)}
        longer.append(replace(row, n_bytes=10 + 7 * k, information_nats=information))
    result = Fit(FitConfig(model="m", works=(WORKS,), audiences=(AUDIENCES,), out=tmp_path)).result(
        {None: longer}
    )
    by_name = {e.name: e for e in result.effects}
    assert by_name["fit_sum"].p < 0.05
    assert by_name["fit"].p is None  # nothing remains
    assert marks(result, "fit") == {None: "n/a"}


def test_the_example_runs_and_its_rows_are_those_of_transformers(tmp_path, trained):
    adapter = trained / "epoch-02"
    config = FitConfig(
        model=str(MODEL), adapter=(adapter,), works=(WORKS,), audiences=(AUDIENCES,),
        out=tmp_path / "out", device="cpu",
    )  # fmt: skip
    result = run_study(Fit(config), config)
    rows = {(r["id"], r["adapter"]): r for r in read_lines(config.out / "rows.jsonl")}
    work, audiences = read_lines(WORKS)[2], read_lines(AUDIENCES)
    assert len({w["source_id"] for w in read_lines(WORKS)}) >= 12
    for name, path in ((None, None), ("epoch-02", adapter)):
        row = rows[work["id"], name]
        end = "<|endoftext|>"
        alone = reference_stats(end, work["work"], path)[0]
        assert row["logp_nats"] == pytest.approx(alone, abs=2e-4)
        text = audiences[1]["wordings"][2]
        after = reference_stats(text + "\n\n", work["work"], path)[0]
        assert row["information_nats"]["lawyers"][2] == pytest.approx(after - alone, abs=4e-4)
    assert list(row["information_nats"]) == ["sailors", "lawyers", "children", "gardeners"]
    of_nobody = {v for held in row["nobody_nats"].values() for v in held}
    assert 1 < len(of_nobody) <= 3
    assert len(result.placed) == 2 * 12 * 4
    written = json.loads((config.out / "study.json").read_text())
    assert written == json.loads(json.dumps(result.to_json()))
    assert set(written["placed"][0]) >= {"rank", "rank95", "residual_nats_per_byte"}
    assert (config.out / "figure.svg").read_bytes().startswith(b"<?xml")
    assert FitRow.from_json({k: v for k, v in row.items() if k != "checksum"}, "x").id == work["id"]


def asked(tmp_path, works, audiences, **changes):
    config = FitConfig(
        model=str(MODEL), works=(write_lines(tmp_path / "w.jsonl", works),),
        audiences=(write_lines(tmp_path / "a.jsonl", audiences),), device="cpu",
        **{"out": tmp_path / "out", **changes},
    )  # fmt: skip
    return Fit(config), config


FEW = [
    {"id": "w0", "text": "A lamp burned."},
    {"id": "w1", "work": " and ran.", "context": "He rose"},
]
SOME = [
    {"id": "a", "wordings": ["For sea folk.", "Read by sailors.", "They know ships."]},
    {"id": "b", "wordings": ["For the young.", "Read by children.", "They like cats."]},
]


def test_without_nobody_the_words_of_each_wording_are_shuffled(tmp_path):
    claim, _ = asked(tmp_path, FEW, SOME)
    one, two = claim.tasks(Tokenizer(MODEL), 1024)
    for audience in one.content.audiences:
        for own, other in zip(audience.wordings, audience.nobody, strict=True):
            assert own != other
            assert sorted(own.split()) == sorted(other.split())
    pairs = claim._pairs(two.content)
    tokenizer = Tokenizer(MODEL)
    assert tokenizer.decode(pairs[None][0]) == "He rose"
    assert tokenizer.decode(pairs["Read by sailors."][0]) == "Read by sailors.\n\nHe rose"
    assert claim._pairs(one.content)[None][0] == tokenizer.null_ids


@pytest.mark.parametrize(
    ("works", "audiences", "said"),
    [
        ([{"id": "w"}], [], r"w\.jsonl:2: expected text in `work`, got: no `work`"),
        ([{"work": "x", "text": "y"}], [], r"w\.jsonl:2: expected `work` or `text`, got both"),
        ([{"text": " \n"}], [], r"w\.jsonl:2: expected words in `text`, got: white space"),
        ([{"text": "x", "group": 3}], [], r"w\.jsonl:2: expected text in `group`"),
        ([{"text": "x", "context": 3}], [], r"w\.jsonl:2: expected text in `context`"),
        ([{"id": "w0", "text": "x"}], [], r"w\.jsonl:2: expected each id once"),
        ([{"text": "word " * 5000}], [], r"w\.jsonl:2 \(after .*a\.jsonl:1\): expected at most"),
        ([{"text": "<|endoftext|>"}], [], r"w\.jsonl:2 .*: expected a text without control"),
        ([], [{"wordings": ["x", "y"]}], r"a\.jsonl:2: expected `wordings` .* got: 2 of them"),
        ([], [{"id": "c"}], r"a\.jsonl:2: expected `wordings` .* got: no `wordings`"),
        ([], [{"wordings": ["x", "y", ""]}], r"a\.jsonl:2: expected text in `wordings\[2\]`"),
        ([], [{"wordings": ["x y", "y x", "x y"]}], r"a\.jsonl:2: expected each wording once"),
        ([], [{"wordings": ["x y", "z", "y x"]}], r"a\.jsonl:2: expected wordings whose words"),
        ([], [{"id": "a", **SOME[1]} | {"id": "a"}], r"a\.jsonl:2: expected each id once"),
        ([], [{**SOME[1], "nobody": "yes"}], r"a\.jsonl:2: expected `nobody` to be true or false"),
        ([], [{**SOME[1], "nobody": True}], r"a\.jsonl: expected at least 2 audiences"),
        (
            [],
            [{"wordings": ["x y", "<|endoftext|> z", "b c"]}],
            r"a\.jsonl:2: expected a text without control",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, works, audiences, said):
    claim, config = asked(
        tmp_path, [FEW[0], *works, FEW[1]], [SOME[0], *audiences] if audiences else SOME
    )
    with pytest.raises(DataError, match=said):
        run_study(claim, config)
    assert not config.out.exists()


def test_one_work_has_no_residual(tmp_path):
    claim, config = asked(tmp_path, FEW[:1], SOME)
    with pytest.raises(DataError, match=r"w\.jsonl: expected at least 2 works, got 1"):
        run_study(claim, config)


@pytest.mark.parametrize(("name", "flag"), [("w.jsonl", "works"), ("a.jsonl", "audiences")])
def test_an_input_inside_the_output_folder_is_refused(tmp_path, name, flag):
    _, config = asked(tmp_path, FEW, SOME)
    inner = tmp_path / "out"
    inner.mkdir()
    (tmp_path / name).rename(inner / name)
    changed = replace(config, **{flag: (inner / name,)})
    with pytest.raises(ConfigError, match=f"expected --out to hold no input, got --{flag}"):
        run_study(Fit(changed), changed)
