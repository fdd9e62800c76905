"""Sampling and scoring say the same of a text, to the bit; and greedy texts are transformers'."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import DEMO, ON_DEVICES, ROOT, shared, tiny_checkpoint
from model.cases import CASES
from score.common import goodness_of_fit, load, load_reference

from cqa.errors import NumericsError
from cqa.kernels.backend import Backend, native_problem
from cqa.model.decoder import Decoder
from cqa.model.load import load_model
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.model.projection import MODULES
from cqa.score.decoder_engine import run_prefix_batch
from cqa.score.engine import SequenceStats
from cqa.score.prefix_batch import PrefixBatch
from cqa.score.sampling import Ids, Sample, sample

NATIVE = pytest.mark.skipif(native_problem() is not None, reason="no native ops")
CPU = torch.device("cpu")
ODD = {"hidden_size": 54, "intermediate_size": 77, "vocab_size": 307}  # no whole vectors
REAL = ROOT / ".models" / "smollm2-135m-instruct"
ENDS = range(8)
BOTH = [torch.float32, torch.bfloat16]
NAMES = [
    "qwen2", "qwen2-sliding", "qwen3-biases", "llama-biases", "llama-yarn", "mistral-sliding",
    "olmo2", "smollm3", "gemma3", "gemma3-scaled", "qwen3-moe", "qwen3-moe-mixed",
]  # fmt: skip


def decoder_of(
    folder: Path, name: str, dtype: torch.dtype = torch.float32, backend: Backend | None = None
) -> Decoder:
    """Return a random decoder of a case, with room for an adapter."""
    architecture, changes = CASES[name]
    path = tiny_checkpoint(folder, architecture, **{"head_dim": 10, **changes, **ODD})
    spec_columns = {} if "moe" in name else dict.fromkeys(MODULES, 5)
    base = load_model(path, device=CPU, dtype=dtype, rank_columns=spec_columns, backend=backend)
    return base.decoder


def adapt(decoder: Decoder) -> None:
    """Attach a random adapter."""
    lora = TrainableLora(decoder, LoraSpec(5, 10.0, True, MODULES), seed=3)
    with torch.no_grad():
        lora.state.param.add_(torch.randn(lora.n_params, generator=torch.manual_seed(1)) * 0.1)
    lora.after_step()


def contexts_of(decoder: Decoder, *lengths: int) -> list[Ids]:
    draw = random.Random(8)
    return [tuple(draw.choices(range(decoder.config.vocab_size), k=n)) for n in lengths]


def scored(decoder: Decoder, context: Ids, texts: list[Ids]) -> list[SequenceStats]:
    """Score texts after a context in one pass."""
    prefixes = PrefixBatch()
    prefixes.add([(context, text) for text in texts])
    found = run_prefix_batch(decoder, prefixes, varentropy=True)
    return [found[context, text] for text in texts]


def assert_equal_to_scores(decoder: Decoder, contexts: list[Ids], drawn: list[list[Sample]]):
    for context, samples in zip(contexts, drawn, strict=True):
        together = scored(decoder, context, [s.token_ids for s in samples])
        for one, stats_together in zip(samples, together, strict=True):
            (alone,) = scored(decoder, context, [one.token_ids])
            for found in (alone, stats_together):
                assert list(one.logp_nats) == found.logp
                assert list(one.entropy_nats) == found.entropy
                assert list(one.rank) == found.rank
                assert list(one.varentropy_nats2) == found.varentropy


@NATIVE
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_logged_of_a_token_is_its_score_to_the_bit(name, dtype, tmp_path):
    decoder = decoder_of(tmp_path, name, dtype)
    contexts = contexts_of(decoder, 1, 33, 130)  # within a block of keys, and beyond one

    def check() -> list[list[Sample]]:
        drawn = sample(decoder, contexts, n_samples=3, max_tokens=60, seed=5, end_ids=ENDS)
        assert len({len(one.token_ids) for samples in drawn for one in samples}) > 2
        assert_equal_to_scores(decoder, contexts, drawn)
        return drawn

    base = check()
    if decoder.rank_columns:
        adapt(decoder)
        assert check() != base


@NATIVE
@pytest.mark.parametrize("name", ["mistral-sliding", "gemma3", "qwen3-moe"])
def test_a_sample_does_not_depend_on_what_else_is_drawn(name, tmp_path):
    decoder = decoder_of(tmp_path, name)
    contexts = contexts_of(decoder, 1, 33, 70, 5)
    settings = {"max_tokens": 25, "seed": 3, "end_ids": ENDS, "temperature": 1.3, "top_p": 0.95}
    whole = sample(decoder, contexts, n_samples=3, **settings)
    alone = [sample(decoder, [c], n_samples=3, **settings)[0] for c in contexts]
    assert alone == whole
    assert sample(decoder, contexts[::-1], n_samples=3, **settings) == whole[::-1]
    for kept_rows in (1, 100):
        assert sample(decoder, contexts, n_samples=3, kept_rows=kept_rows, **settings) == whole
    fewer = sample(decoder, contexts, n_samples=2, **settings)
    assert fewer == [samples[:2] for samples in whole]
    twice = sample(decoder, [contexts[1], contexts[1]], n_samples=3, **settings)
    assert twice == [whole[1], whole[1]]
    other = sample(decoder, contexts, n_samples=3, **{**settings, "seed": 4})
    assert all(a.token_ids != b.token_ids for a, b in zip(other[2], whole[2], strict=True))


def test_shorter_texts_are_the_beginnings_of_longer_ones(tmp_path):
    decoder = decoder_of(tmp_path, "llama")
    (context,) = contexts_of(decoder, 9)
    (longer,) = sample(decoder, [context], n_samples=3, max_tokens=30, seed=1)
    (shorter,) = sample(decoder, [context], n_samples=3, max_tokens=7, seed=1)
    assert [one.token_ids for one in shorter] == [one.token_ids[:7] for one in longer]


def test_a_text_stops_at_an_end_token_at_the_most_tokens_or_at_the_last_position(tmp_path):
    decoder = decoder_of(tmp_path, "qwen3")
    positions = decoder.config.max_positions
    contexts = contexts_of(decoder, 4, positions - 3)
    short, late = sample(decoder, contexts, n_samples=9, max_tokens=50, seed=2, end_ids=ENDS)
    assert {one.stop for one in short} == {"end", "max_tokens"}
    assert {len(one.token_ids) for one in late if one.stop == "positions"} == {3}
    for one in (*short, *late):
        assert (one.token_ids[-1] in ENDS) == (one.stop == "end")
        assert not set(one.token_ids[:-1]) & set(ENDS)
        assert (len(one.token_ids) == 50) or one.stop != "max_tokens"


def test_temperature_0_takes_the_token_of_rank_0(tmp_path):
    decoder = decoder_of(tmp_path, "olmo2")
    drawn = sample(
        decoder, contexts_of(decoder, 3, 20), n_samples=2, max_tokens=30, temperature=0.0
    )
    for samples in drawn:
        assert set(samples[0].rank) == {0}
        assert samples[0] == samples[1]


def test_first_tokens_follow_the_model_s_own_probabilities(tmp_path):
    decoder = decoder_of(tmp_path, "llama")
    (context,), n = contexts_of(decoder, 6), 3000
    (drawn,) = sample(decoder, [context], n_samples=n, max_tokens=1, seed=7)
    tokens = [(token,) for token in range(decoder.config.vocab_size)]
    expected = n * np.exp([s.total for s in scored(decoder, context, tokens)])
    counts = Counter(one.token_ids[0] for one in drawn)
    seen = np.array([counts[token] for (token,) in tokens])
    expected *= n / expected.sum()  # from fp32's rounding
    assert goodness_of_fit(seen, expected) > 1e-3


@pytest.mark.parametrize("device", ON_DEVICES)
def test_other_backends_agree_to_fp32_rounding(device, tmp_path):
    folder = tiny_checkpoint(tmp_path, "mistral", sliding_window=8)
    backend: Backend | None = "reference" if device == "cpu" else None
    place = torch.device(device)
    decoder = load_model(folder, device=place, dtype=torch.float32, backend=backend).decoder
    contexts = contexts_of(decoder, 3, 40)
    drawn = sample(decoder, contexts, n_samples=3, max_tokens=12, seed=5, end_ids=ENDS)
    for context, samples in zip(contexts, drawn, strict=True):
        for one, found in zip(
            samples, scored(decoder, context, [s.token_ids for s in samples]), strict=True
        ):
            assert one.logp_nats == pytest.approx(found.logp, abs=1e-4)
            assert one.entropy_nats == pytest.approx(found.entropy, abs=1e-4)


GREEDY = ["demo", "stories260k", pytest.param("real", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_texts_are_those_of_transformers(name):
    if name == "real" and not REAL.exists():
        pytest.skip("make real-model brings the model")
    folders = {"demo": DEMO / "model", "real": REAL}
    folder = folders.get(name) or shared(f"models/{name}")
    decoder, tokenizer = load(folder)
    texts = ["The old ferry left the harbour before dawn, and", "She opened the door because"]
    contexts = [tokenizer.encode_context(text) for text in texts]
    ours = sample(decoder, contexts, n_samples=1, max_tokens=40, temperature=0.0)
    reference = load_reference(folder)
    for context, (one,) in zip(contexts, ours, strict=True):
        theirs = reference.generate(
            torch.tensor([context]),
            attention_mask=torch.ones(1, len(context), dtype=torch.int64),
            do_sample=False, repetition_penalty=1.0, min_new_tokens=40, max_new_tokens=40,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert one.token_ids == tuple(theirs[0, len(context) :].tolist())


def test_logits_that_are_not_finite_are_refused(tmp_path):
    decoder = decoder_of(tmp_path, "llama")
    decoder.norm[0] = torch.nan
    with pytest.raises(NumericsError, match="finite logits"):
        sample(decoder, contexts_of(decoder, 4), n_samples=1, max_tokens=2)
