"""Probes themselves: scikit-learn's by the Gram matrix, no leak, exact toys, calibrated p."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cqa.claims.probe import labellings, logistic
from cqa.claims.probe.auc import auc, shares
from cqa.claims.probe.changing import exchanged
from cqa.claims.probe.folds import folds
from cqa.claims.probe.labellings import by_first_token, swapped
from cqa.claims.probe.logistic import PENALTIES, out_of_fold
from cqa.claims.probe.outcome import layer_table, probe_effects
from cqa.claims.probe.probing import probed
from cqa.claims.probe.row import ProbeRow
from cqa.errors import NumericsError

N = 24
NAMES = [f"s{k // 2}" for k in range(N)]


def some_rows(rng, n=N, n_sources=12, lengths=None):
    """Rows whose text says nothing, or whose lengths are given."""
    rows = []
    for k in range(n):
        longer = int(rng.integers(-3, 4)) if lengths is None else int(lengths[k])
        rows.append(
            ProbeRow(
                id=f"i{k}", group="g", source_id=f"s{k * n_sources // n}", task_key=f"{k}",
                model_key="m", adapter=None, logp_nats=(float(rng.normal()), 0.0),
                n_tokens=(10 + longer, 10), n_bytes=(30 + 3 * longer, 30),
                first_tokens=(int(rng.integers(0, 6)), int(rng.integers(0, 6))), states_sha256="",
            )
        )  # fmt: skip
    return rows


def ask(states, rows, n_swaps=99, adapter=None):
    """Return the effects of a model's states, and of an adapter's, by name and model."""
    sources = [row.source_id for row in rows]
    split, swaps = folds(sources), swapped(sources, n_swaps)
    controls = by_first_token(rows)
    found = {None: probed(states, rows, split, swaps, controls)}
    changes = {}
    if adapter is not None:
        found["a"] = probed(adapter, rows, split, swaps, controls)
        changes["a"] = exchanged(zip(states, adapter, strict=True), split, swaps)
    effects = {(e.name, e.adapter): e for e in probe_effects(found, changes, sources)}
    return effects, list(layer_table(found, changes))


def reference(differences, labels, split, *, scaled_by=None):
    """Return the same log-odds by scikit-learn, of differences written with a random sign."""
    found = np.zeros(len(labels))
    written = np.random.default_rng(7).choice([-1.0, 1.0], len(labels))
    x, y = differences * (written * labels)[:, None], written  # the sign says which is good

    def told(train, test, c):
        ground = x[train] if scaled_by is None else scaled_by
        size = np.sqrt((ground**2).mean(0) * x.shape[1])
        probe = LogisticRegression(C=c, fit_intercept=False, tol=1e-10, max_iter=5000)
        probe.fit(x[train] / size, y[train])
        return probe.decision_function(x[test] / size) * y[test]

    for fold in split:
        losses = [
            sum(np.logaddexp(0, -told(i.train, i.test, c)).sum() for i in fold.inner)
            for c in PENALTIES
        ]
        found[fold.test] = told(fold.train, fold.test, PENALTIES[int(np.argmin(losses))])
    return found


@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_probes_are_those_of_scikit_learn(strength):
    rng = np.random.default_rng(1)
    differences = rng.normal(size=(N, 40)) * rng.exponential(size=40)
    differences[:, 0] += strength
    labels = rng.choice([-1.0, 1.0], (N, 2))
    labels[:, 0] = 1
    split = folds(NAMES)
    found = out_of_fold(differences, labels, split).odds
    for k in range(2):
        assert found[:, k] == pytest.approx(reference(differences, labels[:, k], split), abs=1e-5)
    everywhere = reference(differences, labels[:, 0], split, scaled_by=differences)
    assert np.abs(found[:, 0] - everywhere).max() > 1e-3  # a global scaling would be seen
    turned = rng.choice([-1.0, 1.0], N)
    same = out_of_fold(differences * turned[:, None], labels * turned[:, None], split).odds
    assert same == pytest.approx(found, abs=1e-9)


def test_nothing_of_a_tested_source_comes_into_its_probe():
    rng = np.random.default_rng(2)
    differences, labels = rng.normal(size=(N, 30)), np.ones((N, 1))
    split = folds(NAMES)
    before = out_of_fold(differences, labels, split).odds
    for fold in split:
        assert not {NAMES[k] for k in fold.train} & {NAMES[k] for k in fold.test}
        for inner in fold.inner:
            assert not {NAMES[k] for k in inner.train} & {NAMES[k] for k in inner.test}
            assert set(inner.train) | set(inner.test) == set(fold.train)
        moved = differences.copy()
        moved[fold.test[0]] *= 1000
        labelled = labels.copy()
        labelled[fold.test] = -1
        after = out_of_fold(moved, labelled, split).odds
        others = fold.test[1:]
        assert after[others] == pytest.approx(-before[others], abs=1e-9)
    assert sorted(np.concatenate([fold.test for fold in split])) == list(range(N))


def test_folds_do_not_hang_on_the_order_of_items():
    order = np.random.default_rng(3).permutation(N)
    tested = {frozenset(NAMES[k] for k in f.test) for f in folds(NAMES)}
    again = folds([NAMES[k] for k in order])
    assert {frozenset(NAMES[order[k]] for k in f.test) for f in again} == tested


def test_ungrouped_folds_would_leak():
    """Items of a source are alike, and sources have nothing in common."""
    rng = np.random.default_rng(4)
    names = [f"s{k // 4}" for k in range(48)]
    own = rng.normal(size=(12, 60))
    differences = np.repeat(own, 4, axis=0) + 0.3 * rng.normal(size=(48, 60))
    truth = np.ones((48, 1))
    apart = auc(out_of_fold(differences, truth, folds(names)).odds[:, 0])
    mixed = auc(out_of_fold(differences, truth, folds([str(k) for k in range(48)])).odds[:, 0])
    assert mixed > 0.95
    assert apart < 0.75


def test_the_auc_is_the_mean_over_random_signs():
    rng = np.random.default_rng(5)
    odds = np.round(rng.normal(0.4, 1, 9), 1)
    odds[:2] = 0.0
    areas = []
    for code in range(2**9):
        signs = np.where(code >> np.arange(9) & 1, 1, -1)
        n_pairs = (signs > 0).sum() * (signs < 0).sum()
        if n_pairs:
            areas.append((roc_auc_score(signs > 0, signs * odds), n_pairs))
    expected = sum(a * n for a, n in areas) / sum(n for _, n in areas)
    assert auc(odds) == pytest.approx(expected, abs=1e-12)
    assert shares(odds).mean() == pytest.approx(expected, abs=1e-12)
    assert auc(np.zeros(5)) == 0.5
    assert auc(np.ones(1)) == 0.5


def test_the_spread_of_shares_is_that_of_the_auc():
    rng = np.random.default_rng(6)
    drawn = [rng.normal(0.5, 1, 60) for _ in range(400)]
    spread = np.std([auc(odds) for odds in drawn])
    told = np.mean([shares(odds).std() / np.sqrt(60) for odds in drawn])
    assert told == pytest.approx(spread, rel=0.1)


def test_a_planted_direction_is_found_at_its_layer():
    rng = np.random.default_rng(7)
    states = [[rng.normal(size=(N, 50)) for _ in range(2)] for _ in range(4)]
    states[2][1][:, :5] += 3
    effects, layers = ask(states, some_rows(rng))
    best = max(layers, key=lambda one: one.auc)
    assert (best.layer, best.position) == (2, "last")
    assert best.auc > 0.97
    assert "layer 2, last token" in effects["auc", None].label
    for name in ("excess", "beyond_text", "beyond_words"):
        assert effects[name, None].p < 0.05
    assert effects["selectivity", None].value > 0.1
    assert abs(best.null_mean - 0.5) < 0.1


def test_a_probe_that_only_reads_length_does_not_beat_the_baseline():
    rng = np.random.default_rng(8)
    lengths = rng.choice([-1, 1, 2, 3, 4, 5], N)
    states = [[rng.normal(size=(N, 10)) for _ in range(2)] for _ in range(3)]
    for place in (0, 1):
        states[1][place][:, :5] += 3 * lengths[:, None]
    effects, _ = ask(states, some_rows(rng, lengths=lengths))
    assert effects["excess", None].p < 0.05
    assert effects["text", None].value > 0.7
    assert effects["beyond_text", None].p > 0.1


def test_what_an_adapter_adds_is_a_change_and_the_same_states_are_none():
    rng = np.random.default_rng(9)
    states = [[rng.normal(size=(N, 10)) for _ in range(2)] for _ in range(3)]
    better = [[x + 2 * (layer > 0) for x in both] for layer, both in enumerate(states)]
    effects, layers = ask(states, some_rows(rng), adapter=better)
    change = effects["change", "a"]
    assert change.value > 0.2
    assert change.p == 0.01
    assert change.ci95[0] > 0
    assert {one.change is None for one in layers if one.adapter is None} == {True}
    first = next(one for one in layers if one.adapter == "a")
    assert first.change == pytest.approx(0, abs=1e-12)
    effects, _ = ask(states, some_rows(rng), adapter=states)
    assert effects["change", "a"].value == 0
    assert effects["change", "a"].p == effects["change", "a"].p_against == 1


def test_few_sources_decide_nothing():
    rng = np.random.default_rng(10)
    states = [[rng.normal(size=(12, 5)) + 5 for _ in range(2)] for _ in range(2)]
    effects, _ = ask(states, some_rows(rng, 12, 6), adapter=states)
    assert effects["excess", None].value > 0
    assert {effect.p for effect in effects.values()} == {None}


def test_labels_by_first_token_are_of_tokens_alone():
    rows = some_rows(np.random.default_rng(11), 60)
    found = by_first_token(rows)
    by_tokens = {}
    for row, labels in zip(rows, found, strict=True):
        first, second = row.first_tokens
        sign = 1 if first < second else -1
        key = min(first, second), max(first, second)
        assert (labels == 0).all() == (first == second)
        assert (by_tokens.setdefault(key, labels * sign) == labels * sign).all()


def test_swapped_labels_turn_whole_sources():
    found = swapped(["a", None, "a", "b"], 500)
    assert (found[0] == found[2]).all()
    assert np.abs(np.corrcoef(found[[0, 1, 3]]) - np.eye(3)).max() < 0.15
    assert np.abs(found.mean(axis=1)).max() < 0.15


@pytest.fixture
def fewer_penalties(monkeypatch):
    monkeypatch.setattr(logistic, "PENALTIES", (0.1, 1.0))


def test_of_noise_one_in_twenty_is_told_apart(fewer_penalties, monkeypatch):
    """Items of a source lean one way together, each source its own."""
    p_values = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        monkeypatch.setattr(labellings, "SEED", seed)  # of nineteen swaps not always the same
        rows = some_rows(rng, 20, 10)
        own = np.repeat(rng.standard_t(4, (10, 8)), 2, axis=0)
        states = [[own[:, :6] + rng.normal(size=(20, 6))] * 2 for _ in range(2)]
        sources = [row.source_id for row in rows]
        swaps = swapped(sources, 19)
        p = probed(states, rows, folds(sources), swaps, by_first_token(rows)[:, :1])
        top, null = p.auc[2:].max(), p.null[2:].max(axis=0)
        p_values.append((1 + (null >= top - 1e-12).sum()) / 20)
    assert 0.005 < np.mean(np.array(p_values) <= 0.05) <= 0.085
    assert np.mean(p_values) == pytest.approx(0.525, abs=0.06)


def test_of_adapters_that_change_nothing_one_in_twenty_is_said_to(fewer_penalties, monkeypatch):
    """Base and adapter hold the same signal in noise of their own."""
    p_values = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        monkeypatch.setattr(labellings, "SEED", seed)  # of nineteen swaps not always the same
        sources = [f"s{k // 2}" for k in range(20)]
        states = rng.normal(size=(2, 20, 6)) + np.repeat(rng.normal(size=(2, 10, 6)), 2, axis=1)
        states[:, :, 0] += 1
        none = [np.zeros((20, 1))]
        pairs = [(none, none), ([states[0]], [states[1]])]
        (_, moved) = exchanged(pairs, folds(sources), swapped(sources, 19))
        p_values.append((1 + (moved[1:] >= moved[0] - 1e-12).sum()) / 20)
    assert 0.005 < np.mean(np.array(p_values) <= 0.05) <= 0.085
    assert np.mean(p_values) == pytest.approx(0.525, abs=0.06)


def test_of_states_that_say_what_the_text_says_one_in_twenty_is_beyond_it(fewer_penalties):
    """A layer and the text hold the same signal, each in noise of its own."""
    p_values = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rows = [
            replace(row, n_tokens=(100 + a, 100), n_bytes=(100 + b, 100), logp_nats=(c, 0.0))
            for row, (a, b), c in zip(
                some_rows(rng, 20, 20), rng.integers(-8, 17, (20, 2)).tolist(),
                rng.normal(4, 8, 20).tolist(), strict=True,
            )
        ]  # fmt: skip
        states = [[rng.normal(4, 8, (20, 3))] * 2 for _ in range(2)]
        effects, _ = ask(states, rows, n_swaps=1)
        p_values.append(effects["beyond_text", None].p)
    assert np.mean(np.array(p_values) < 0.05) <= 0.075


def test_states_that_are_not_finite_are_refused():
    differences = np.ones((N, 2))
    differences[3, 1] = np.nan
    with pytest.raises(NumericsError, match="expected finite states of the model"):
        out_of_fold(differences, np.ones((N, 1)), folds(NAMES))
