"""What is drawn against what is scored, beside laws that are not the model's."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from claims.asking import MODEL, reference
from claims.duality_rows import config_of, rows_of

from cqa.claims.duality.claim import Duality
from cqa.claims.duality.draws import LAWS, Drawing, draw
from cqa.claims.duality.sampled import FEWEST_TOKENS, NAMES, drawn_outcome, law_test
from cqa.claims.run import run_study
from cqa.data.tokenizer import Tokenizer
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.sampling import sample


@pytest.fixture
def settings(tmp_path):
    return partial(config_of, tmp_path)


@pytest.fixture(scope="module")
def engine() -> DecoderEngine:
    found = DecoderEngine(MODEL, [], device="cpu", dtype="fp32")
    found.open()
    return found


def test_of_the_example_t_1_passes_and_both_other_laws_are_rejected(settings):
    config = settings(samples=10, max_tokens=8, seed=1)
    result = run_study(Duality(config), config)
    by_name = {e.name: e for e in result.effects if e.group is None}
    assert by_name["drawn"].n == 16 * 10 * 8
    assert min(by_name["drawn"].p, by_name["drawn_first"].p) > 0.05
    assert max(by_name["drawn_cool"].p, by_name["drawn_nucleus"].p) < 1e-3
    assert by_name["log_gap"].value == 0  # the native ops give the same bits
    no_side = ("gap", "other_gap", "excess_gap", "nearer", "other_nearer")
    assert {by_name[name].p for name in no_side} == {None}
    assert by_name["excess_nearer"].p is not None
    (drawn,) = [f for f in result.findings if f.name == "drawn"]
    assert drawn.mark == "shown"
    assert "T = 0.9: z -" in drawn.reason
    assert json.loads((config.out / "study.json").read_text())["study"] == "duality"


def test_a_row_is_of_what_was_drawn_by_transformers_in_float64(engine):
    context = Tokenizer(MODEL).encode_context("She looked out")
    drawing = Drawing(n_samples=3, max_tokens=6, seed=5, end_ids=frozenset())
    drawn = draw(engine, [context], drawing)[0][context]
    model, _ = reference()
    for k, law in enumerate(LAWS):
        (samples,) = sample(
            engine.base.decoder, [context], n_samples=3, max_tokens=6, seed=5,
            temperature=law.temperature, top_p=law.top_p,
        )  # fmt: skip
        surplus = varentropy = 0.0
        for one in samples:
            ids = torch.tensor([context + one.token_ids])
            with torch.no_grad():
                logp = model(ids).logits[0, len(context) - 1 : -1].log_softmax(-1)
            p = logp.exp()
            entropy = -(p * logp).sum(1)
            own = logp[torch.arange(len(one.token_ids)), torch.tensor(one.token_ids)]
            surplus += float((-own - entropy).sum())
            varentropy += float((p * (logp + entropy[:, None]) ** 2).sum())
        assert drawn.drawn_tokens[k] == 18
        assert drawn.surplus_nats[k] == pytest.approx(surplus, abs=1e-4)
        assert drawn.varentropy_nats2[k] == pytest.approx(varentropy, rel=1e-5)
        first = torch.bincount(torch.tensor([s.token_ids[0] for s in samples]), minlength=9999)
        with torch.no_grad():
            law_of_first = model(torch.tensor([context])).logits[0, -1].softmax(-1)
        top = law_of_first.topk(4)
        assert drawn.candidate_p == pytest.approx(top.values.tolist(), rel=1e-5)
        assert list(drawn.candidate_counts[k]) == first[top.indices].tolist()


def test_what_else_is_drawn_changes_nothing(engine):
    tokenizer = Tokenizer(MODEL)
    contexts = [tokenizer.encode_context(c) for c in ("She looked out", "The old dog")]
    drawing = Drawing(n_samples=2, max_tokens=4, seed=0, end_ids=frozenset())
    together, texts = draw(engine, [*contexts, contexts[0]], drawing)
    assert together == {c: draw(engine, [c], drawing)[0][c] for c in contexts}
    assert texts == {c: draw(engine, [c], drawing)[1][c] for c in contexts}


def test_of_sound_samplers_about_one_in_twenty_is_rejected_by_either_test():
    rng = np.random.default_rng(0)
    tests = [law_test(rows_of(rng), 0, 1) for _ in range(300)]
    assert tests[0].n_tokens == 600 >= FEWEST_TOKENS
    for p in ([t.p for t in tests], [t.p_z for t in tests], [t.p_chi2 for t in tests]):
        assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.075
    assert np.std([t.z for t in tests]) == pytest.approx(1, abs=0.12)
    assert np.mean([t.chi2 for t in tests]) == pytest.approx(tests[0].df, abs=0.5)


def test_the_chi_square_sees_what_surprise_does_not():
    """Two first tokens of one probability, of which a broken sampler never draws the second."""
    (row,) = rows_of(np.random.default_rng(0), n_rows=1, n_texts=400, n_tokens=2)
    p = (0.3, 0.3, 0.1, 0.1)
    sound = replace(row, candidate_p=p, candidate_counts=((120, 121, 42, 37),) * 3)
    broken = replace(sound, candidate_counts=((241, 0, 42, 37),) * 3)
    assert law_test([sound], 0, 1).p_chi2 > 0.5
    assert law_test([broken], 0, 1).p_chi2 < 1e-9
    assert law_test([broken], 0, 1).p_z == law_test([sound], 0, 1).p_z
    n = 400 * np.array([0.3, 0.3, 0.1, 0.1, 0.2])  # of one context it is Pearson's
    counts = np.array([120, 121, 42, 37, 80])
    assert law_test([sound], 0, 1).chi2 == pytest.approx(((counts - n) ** 2 / n).sum())


def test_marks_take_that_the_controls_are_rejected():
    rng = np.random.default_rng(3)

    def mark(rows) -> str:
        (found,) = drawn_outcome({None: rows})[1]
        return found.mark

    sharp = (1.0, 0.5, 0.5)
    assert mark(rows_of(rng, sharp)) == "shown"
    assert mark(rows_of(rng, (1.0, 0.5, 1.0))) == "not shown"  # one control is not told from it
    assert mark(rows_of(rng, (0.5, 0.5, 0.5))) == "against"
    few = rows_of(rng, sharp, n_rows=3)
    assert mark(few) == "n/a"
    assert {e.p for e in drawn_outcome({None: few})[0] if e.name in NAMES} == {None}


def test_p_is_corrected_for_the_models_and_a_context_counts_once():
    rows = rows_of(np.random.default_rng(4))
    alone, of_two = law_test(rows, 0, 1), law_test(rows, 0, 2)
    assert of_two.p_z == pytest.approx(min(1, 2 * alone.p_z))
    again = [*rows, *(replace(row, id=f"again-{row.id}") for row in rows)]
    assert law_test(again, 0, 1) == alone
