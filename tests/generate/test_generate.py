"""`generate`: texts from prompts, by the command and in Python, and what scoring says of them."""

import json
from pathlib import Path

import pytest
from cli.common import MODEL, assert_one_error, invoke
from helpers import read_lines, tiny_model, tiny_run, write_lines

import cqa
from cqa.data.items import parse_continuation
from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, DataError, ModelError
from cqa.generate.run import STDIN
from cqa.score.generated import end_ids, prompt_ids
from cqa.score.prefix_batch import encode_item
from cqa.score.resident import Model
from cqa.score.sampling import sample

PROMPTS = ["She waited by the door.", "The lamp was lit, and so"]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def model() -> Model:
    return cqa.load(MODEL, device="cpu")


def printed(*args: object) -> dict:
    """Return what `generate --json` prints under the demo's model."""
    result = invoke("generate", "--model", MODEL, "--device", "cpu", "--json", *args)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_texts_are_samples_of_the_encoded_prompts(model):
    drawn = model.generate(PROMPTS, n_samples=2, max_tokens=12, temperature=0.9, top_p=0.9, seed=4)
    contexts = [model.tokenizer.encode_context(prompt) for prompt in PROMPTS]
    expected = sample(
        model.decoder, contexts, n_samples=2, max_tokens=12, temperature=0.9, top_p=0.9, seed=4,
        end_ids=[model.tokenizer.end_id],
    )  # fmt: skip
    for texts, samples in zip(drawn, expected, strict=True):
        for text, one in zip(texts, samples, strict=True):
            assert (text.token_ids, text.logp_nats) == (one.token_ids, one.logp_nats)
            assert (text.entropy_nats, text.rank, text.varentropy_nats2, text.stop) == (
                one.entropy_nats, one.rank, one.varentropy_nats2, one.stop,
            )  # fmt: skip


def test_a_text_that_is_scored_has_the_log_probabilities_it_was_drawn_with(model):
    texts = [
        one for several in model.generate(PROMPTS, n_samples=8, max_tokens=6) for one in several
    ]
    places = [prompt for prompt in PROMPTS for _ in range(8)]
    same = [
        (place, one)
        for place, one in zip(places, texts, strict=True)
        if model.tokenizer.encode_following(one.text) == one.token_ids
    ]
    assert len(same) > 4  # others are split into other tokens when they are read
    for place, one in same:
        assert model.logprobs(place, one.text) == list(one.logp_nats)


def test_one_prompt_and_the_same_among_others_have_the_same_texts(model):
    (alone,) = model.generate(PROMPTS[1], n_samples=3, max_tokens=9)
    assert model.generate(PROMPTS, n_samples=3, max_tokens=9)[1] == alone


def test_end_tokens_are_the_tokenizer_s_and_the_model_s(tmp_path):
    folder = tiny_model(tmp_path)
    tokenizer = Tokenizer(folder)
    file = folder / "generation_config.json"
    for named, more in ((7, {7}), ([7, 9], {7, 9}), (None, set())):
        file.write_text(json.dumps({"eos_token_id": named}))
        assert end_ids(folder, tokenizer) == {tokenizer.end_id, *more}
    file.write_text('{"eos_token_id": ["7"]}')
    with pytest.raises(ModelError, match="eos_token_id"):
        end_ids(folder, tokenizer)
    file.write_text(json.dumps({"eos_token_id": list(range(304))}))
    ((one,),) = cqa.load(folder, device="cpu").generate("the lamp", max_tokens=5)
    assert (one.text, len(one.token_ids), one.stop) == ("", 1, "end")


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_prompt_is_what_scoring_makes_of_a_context(tmp_path, template):
    path = tmp_path / "chat.jinja"
    path.write_text(template or "")
    tokenizer = Tokenizer(Path(MODEL), template=str(path) if template else "plain")
    record = {"id": "a", "context": PROMPTS[0], "continuation": " Then she left."}
    item = parse_continuation(record, "")
    (option,) = encode_item(item, tokenizer, "split", score_eos=False, max_positions=99).options
    assert prompt_ids(PROMPTS[0], tokenizer, 99, "") == option.context_ids


def test_adapters_are_swapped_and_named(tmp_path):
    tiny_run(tmp_path)
    adapter = tmp_path / "run" / "epoch-02"
    held = cqa.load(tmp_path / "model", adapter, device="cpu")
    settings = {"n_samples": 2, "max_tokens": 8}
    adapted = held.generate("the lamp", **settings)
    base = held.generate("the lamp", adapter=None, **settings)
    assert base == cqa.load(tmp_path / "model", device="cpu").generate("the lamp", **settings)
    assert base != adapted == held.generate("the lamp", **settings)
    args = ["--model", tmp_path / "model", "--prompt", "the lamp", "--samples", 2, "--json"]
    result = invoke("generate", *args, "--max-tokens", 8, "--adapter", adapter, "--device", "cpu")
    texts = json.loads(result.stdout)["texts"]
    assert [tuple(one["logp_nats"]) for one in texts] == [one.logp_nats for one in adapted[0]]


def test_the_command_reads_files_and_writes_json_and_rows(tmp_path):
    records = [
        {"id": "door", "prompt": PROMPTS[0], "response": "unread"},
        {"context": PROMPTS[1], "good": " a", "bad": " b"},
    ]
    file = write_lines(tmp_path / "prompts.jsonl", records)
    out = tmp_path / "new" / "texts.jsonl"
    args = ["--prompts", file, "--samples", 2, "--max-tokens", 5, "--seed", 3]
    found = printed(*args, "--out", out)
    assert (found["model"], found["adapter"], found["seed"]) == (MODEL, None, 3)
    assert [(t["id"], t["prompt"], t["sample"]) for t in found["texts"]] == [
        (name, prompt, number)
        for name, prompt in (("door", PROMPTS[0]), ("prompts-2", PROMPTS[1]))
        for number in (1, 2)
    ]
    for text in found["texts"]:
        assert {len(text[k]) for k in ("token_ids", "logp_nats", "entropy_nats", "rank")} == {5}
        assert text["stop"] == "max_tokens"
    assert read_lines(out) == found["texts"]
    assert printed(*args, "--out", out) == found  # its own file it replaces
    alone = printed("--prompt", PROMPTS[1], "--samples", 2, "--max-tokens", 5, "--seed", 3)
    assert [t["text"] for t in alone["texts"]] == [t["text"] for t in found["texts"][2:]]


def test_texts_are_printed_alone_or_under_their_names():
    args = ["generate", "--model", MODEL, "--prompt", PROMPTS[0], "--max-tokens", 4]
    one, two = invoke(*args), invoke(*args, "--samples", 2)
    texts = [
        t["text"]
        for t in printed("--prompt", PROMPTS[0], "--max-tokens", 4, "--samples", 2)["texts"]
    ]
    assert one.stdout == texts[0] + "\n"
    assert two.stdout == (f"[prompt-1, sample 1]\n{texts[0]}\n\n[prompt-1, sample 2]\n{texts[1]}\n")


@pytest.mark.parametrize(("start", "end"), [("", ""), ("", "\n"), ("\ufeff", "\r\n")])
def test_a_prompt_comes_from_standard_input(start, end):
    from click.testing import CliRunner
    from cqa_fast.main import main

    args = ["generate", "--model", MODEL, "--prompt", "-", "--max-tokens", "4", "--json"]
    result = CliRunner().invoke(main, args, input=(start + PROMPTS[0] + end).encode())
    assert (
        json.loads(result.stdout)["texts"]
        == printed("--prompt", PROMPTS[0], "--max-tokens", 4)["texts"]
    )
    for data, part in ((b"", "got an empty text"), (b"\xff", "expected UTF-8, got byte 0xff")):
        result = CliRunner().invoke(main, args, input=data)
        assert_one_error(result, 3, f"{STDIN}: ", part)


def test_prompts_have_columns_and_ids_of_their_own(tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text(f"name,text\na\x1b[2J,{PROMPTS[0]}\nb,{PROMPTS[0]}\n")
    args = ["generate", "--model", MODEL, "--prompts", file, "--max-tokens", 2]
    assert_one_error(invoke(*args), 3, "prompts.csv:2: expected text in `prompt`", "--columns")
    result = invoke(*args, "--columns", "prompt=text,id=name")
    assert "\x1b" not in result.stdout
    assert "[b, sample 1]" in result.stdout
    file = write_lines(tmp_path / "same.jsonl", [{"id": "a", "prompt": p} for p in PROMPTS])
    result = invoke("generate", "--model", MODEL, "--prompts", file)
    assert_one_error(result, 3, "same.jsonl:2: expected each id once, got `a` again")


def test_a_path_is_told_on_one_line(tmp_path):
    out = tmp_path / "odd\nname.jsonl"
    args = ["--prompt", PROMPTS[0], "--max-tokens", 1, "--out", out]
    result = invoke("generate", "--model", MODEL, *args)
    assert out.exists()
    assert result.stderr.count("\n") == 1


def test_prompts_that_cannot_be_drawn_from_are_refused(model):
    with pytest.raises(DataError, match="got an empty text"):
        model.generate(["fine", ""])
    with pytest.raises(DataError, match="fewer tokens than the model's 1024 positions, got"):
        model.generate(["word " * 3000])
    with pytest.raises(DataError, match="without control tokens"):
        model.generate([model.tokenizer.hf.eos_token])
    for settings in ({"temperature": -1.0}, {"top_p": 0.0}, {"n_samples": 0}, {"seed": -1}):
        with pytest.raises(ConfigError):
            model.generate("fine", **settings)
    assert model.generate([]) == []
