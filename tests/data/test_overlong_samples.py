"""Samples over the limit: refused, dropped, or cut at the start of the prompt."""

import pytest
from data.training_samples import PROMPT
from helpers import DEMO, shared, tiny_model, write_lines

from cqa.data.lengths import encode_samples, fit_lengths
from cqa.data.samples import EncodedSample, encode_sample, read_samples
from cqa.data.tokenizer import Tokenizer
from cqa.errors import DataError
from cqa.train.config import TrainConfig
from cqa.train.plan import make_plan


def test_text_far_too_long_is_refused_or_dropped_without_being_encoded(file, monkeypatch):
    tokenizer = Tokenizer(DEMO / "model")
    samples = read_samples(write_lines(file, [PROMPT, {**PROMPT, "prompt": "word " * 100_000}]))
    encoded = Tokenizer.encode_context

    def watched(self: Tokenizer, text: str) -> tuple[int, ...]:
        assert len(text) < 1000
        return encoded(self, text)

    monkeypatch.setattr(Tokenizer, "encode_context", watched)
    with pytest.raises(
        DataError, match=f"^{file}:2: expected at most 9 tokens, got at least 35716 in"
    ):
        encode_samples(samples, tokenizer, 9, "refuse")
    kept, touched = encode_samples(samples, tokenizer, 9, "drop")
    assert ([sample.id for sample in kept], touched) == (["line-1"], ["line-2"])


@pytest.mark.parametrize("model", ["demo", "nfc", "llama"])
def test_prompt_far_too_long_is_cut_to_the_same_ids_without_being_encoded_whole(
    file, tmp_path, monkeypatch, model
):
    folder = {
        "demo": DEMO / "model", "nfc": tiny_model(tmp_path / "nfc"),
        "llama": shared("models/stories260k"),
    }[model]  # fmt: skip
    tokenizer = Tokenizer(folder)
    prompt = "".join(f"She lit lamp {k}, e\u0301 and went \n on. " for k in range(20_000))
    (sample,) = read_samples(write_lines(file, [{**PROMPT, "prompt": prompt}]))
    whole, _ = fit_lengths([encode_sample(sample, tokenizer)], 40, "truncate")
    encoded = Tokenizer.encode_context

    def watched(self: Tokenizer, text: str) -> tuple[int, ...]:
        assert len(text) < len(prompt) / 10
        return encoded(self, text)

    monkeypatch.setattr(Tokenizer, "encode_context", watched)
    (cut,), touched = encode_samples([sample], tokenizer, 40, "truncate")
    assert (cut.ids, touched) == (whole[0].ids, [sample.id])
    assert len(cut.ids) == 40


def test_answer_far_too_long_is_not_encoded_to_be_cut(file, monkeypatch):
    (sample,) = read_samples(write_lines(file, [{**PROMPT, "response": " word" * 100_000}]))
    monkeypatch.delattr(Tokenizer, "encode_following")
    tokenizer = Tokenizer.__new__(Tokenizer)
    monkeypatch.setattr(Tokenizer, "at_least_tokens", lambda _, text: len(text) // 50)
    with pytest.raises(DataError, match=f"^{file}:1: expected at most 9 tokens, got at least") as e:
        encode_samples([sample], tokenizer, 9, "truncate")
    assert "what is learned is too long without one" in e.value.hint


def sample_of(name: str, n_prompt: int, n_learned: int) -> EncodedSample:
    n = n_prompt + n_learned
    learned = (False,) * n_prompt + (True,) * n_learned
    return EncodedSample(name, tuple(range(n)), learned, slice(0, n_prompt), f"train.jsonl:{n}")


LENGTHS = [sample_of("short", 2, 2), sample_of("fits", 4, 4), sample_of("long", 7, 4)]


def test_over_long_sample_is_refused_by_name(tokenizer):
    with pytest.raises(DataError, match=r"at most 8 tokens, got 11 .*`long`") as caught:
        fit_lengths(LENGTHS, 8, "refuse")
    assert caught.value.where == "train.jsonl:11"
    assert "--too-long drop" in str(caught.value.hint)


def test_over_long_sample_is_dropped_and_named():
    assert fit_lengths(LENGTHS, 8, "drop") == (LENGTHS[:2], ["long"])


def test_over_long_sample_loses_the_start_of_its_prompt_and_is_named():
    kept, affected = fit_lengths(LENGTHS, 8, "truncate")
    assert kept[:2] == LENGTHS[:2]
    assert affected == ["long"]
    assert kept[2].ids == tuple(range(3, 11))
    assert kept[2].loss_mask == (False,) * 4 + (True,) * 4


@pytest.mark.parametrize("max_tokens", [4, 3], ids=["no-prompt-left", "answer-too-long"])
def test_truncation_never_cuts_the_answer_nor_all_of_the_prompt(max_tokens):
    with pytest.raises(DataError, match=r"got 11, 7 of them .*`long`"):
        fit_lengths([sample_of("long", 7, 4)], max_tokens, "truncate")
    (kept,), _ = fit_lengths([sample_of("long", 7, 4)], 5, "truncate")
    assert kept.loss_mask == (False,) + (True,) * 4


@pytest.mark.parametrize("policy", ["refuse", "drop", "truncate"])
def test_samples_that_fit_are_left_alone(policy):
    assert fit_lengths(LENGTHS, 11, policy) == (LENGTHS, [])


def test_truncated_sample_keeps_its_bos(file):
    write_lines(file, [PROMPT])
    model = shared("models/stories260k")

    def ids(**limits: object) -> tuple[int, ...]:
        config = TrainConfig(model=str(model), data=(file,), out=file, validation="0", **limits)
        return make_plan(config).train[0].ids

    whole = ids()
    cut = ids(max_tokens=len(whole) - 3, too_long="truncate")
    assert cut == whole[:1] + whole[4:]
