"""Training files: five formats, what is learned of them, over-long samples, and what is refused."""

import json
from itertools import groupby
from pathlib import Path

import pytest
from helpers import DEMO, shared, tiny_model, write_lines

from cqa.data.items import parse_pair
from cqa.data.samples import (
    EncodedSample,
    Turn,
    encode_sample,
    encode_samples,
    fit_lengths,
    plain_parts,
    read_samples,
)
from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, DataError
from cqa.score.prefix_batch import encode_item
from cqa.train.config import TrainConfig
from cqa.train.plan import make_plan

END = "<|endoftext|>"
PROMPT = {"prompt": "Q: why?", "response": " Because."}
ALPACA = {
    "system": "Judge.",
    "history": [["Who?", "Ann."], ["When?", "Now."]],
    "instruction": "Why?",
    "input": "A text.",
    "output": "Because.",
}
SHAREGPT = {
    "system": "Judge.",
    "conversations": [
        {"from": "human", "value": "Who?"},
        {"from": "gpt", "value": "Ann."},
        {"from": "user", "value": "Why?"},
        {"from": "assistant", "value": "Because."},
    ],
}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ann."},
    ]
}
DIALOGUE = {
    "dialogue": [
        {"role": "B", "text": "Who?"},
        {"role": "C", "text": "Ann."},
        {"role": "B", "text": "Why?"},
        {"role": "C", "text": "Because."},
        {"role": "B", "text": "Thanks."},
    ]
}
FORMATS = {
    "prompt": PROMPT,
    "alpaca": ALPACA,
    "sharegpt": SHAREGPT,
    "messages": MESSAGES,
    "dialogue": DIALOGUE,
}
TURNS = {
    "prompt": ["user: Q: why?", "assistant:  Because."],
    "alpaca": [
        "system: Judge.", "user: Who?", "assistant: Ann.", "user: When?", "assistant: Now.",
        "user: Why?\nA text.", "assistant: Because.",
    ],
    "sharegpt": [
        "system: Judge.", "user: Who?", "assistant: Ann.", "user: Why?", "assistant: Because.",
    ],
    "messages": ["system: Judge.", "user: Who?", "assistant: Ann."],
    "dialogue": [
        "user: Who?", "assistant: Ann.", "user: Why?", "assistant: Because.", "user: Thanks.",
    ],
}  # fmt: skip
PLAIN = {  # text before a learned part, then that part, and so on
    "prompt": ["Q: why?", " Because."],
    "alpaca": ["Judge.\nWho?\n", "Ann.", "\nWhen?\n", "Now.", "\nWhy?\nA text.\n", "Because."],
    "sharegpt": ["Judge.\nWho?\n", "Ann.", "\nWhy?\n", "Because."],
    "messages": ["Judge.\nWho?\n", "Ann."],
    "dialogue": ["B: Who?\nC:", " Ann.", "\nB: Why?\nC:", " Because."],
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(DEMO / "model")


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "train.jsonl"


def encode(file: Path, record: dict, tokenizer: Tokenizer, **options) -> EncodedSample:
    (sample,) = read_samples(write_lines(file, [record]))
    return encode_sample(sample, tokenizer, **options)


def runs_of(encoded: EncodedSample, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The text of each run of ids that are all learned, or all not."""
    flagged = zip(encoded.ids, encoded.loss_mask, strict=True)
    return [
        (tokenizer.decode([token for token, _ in run]), learned)
        for learned, run in groupby(flagged, key=lambda pair: pair[1])
    ]


def alternating(texts: list[str]) -> list[tuple[str, bool]]:
    return [(text, i % 2 == 1) for i, text in enumerate(texts)]


@pytest.mark.parametrize("kind", FORMATS)
def test_turns_of(kind, file):
    (sample,) = read_samples(write_lines(file, [FORMATS[kind]]))
    assert sample.format == kind
    assert [f"{turn.role}: {turn.text}" for turn in sample.turns] == TURNS[kind]


@pytest.mark.parametrize("kind", FORMATS)
def test_plain_text_of(kind, file):
    (sample,) = read_samples(write_lines(file, [FORMATS[kind]]))
    assert plain_parts(sample) == alternating(PLAIN[kind])


@pytest.mark.parametrize("kind", FORMATS)
def test_answers_and_one_end_token_are_learned_of(kind, file, tokenizer):
    *parts, last = PLAIN[kind]
    encoded = encode(file, FORMATS[kind], tokenizer)
    assert runs_of(encoded, tokenizer) == alternating([*parts, last + END])
    assert encoded.ids[-1] == tokenizer.end_id
    assert encoded.ids.count(tokenizer.end_id) == 1


def test_ids_and_labels_of_a_sample_by_hand(file, tokenizer):
    encoded = encode(file, PROMPT, tokenizer)
    assert encoded.ids == (48, 25, 1447, 30, 410, 1474, 809, 13, 4093)
    assert encoded.loss_mask == (False,) * 4 + (True,) * 5
    assert encoded.n_labels == 5


def test_whole_text_is_learned_on_request_but_for_the_first_token(file, tokenizer):
    encoded = encode(file, PROMPT, tokenizer, whole_text=True)
    assert encoded.ids == encode(file, PROMPT, tokenizer).ids
    assert all(encoded.loss_mask)
    assert encoded.n_labels == len(encoded.ids) - 1


def test_one_bos_in_front_and_no_space_inside_where_the_tokenizer_would_add_them(file):
    tokenizer = Tokenizer(shared("models/stories260k"))
    encoded = encode(file, PROMPT, tokenizer)
    tokens = tokenizer.hf.convert_ids_to_tokens(encoded.ids)
    n_prompt = encoded.loss_mask.index(True)
    assert "".join(tokens[:n_prompt]) == "<s>▁Q:▁why?"
    assert "".join(tokens[n_prompt:]) == "▁Because.</s>"
    assert all(encoded.loss_mask[n_prompt:])


def test_answer_alone_is_learned_without_anything_before_it(file, tokenizer):
    record = {"messages": [{"role": "assistant", "content": "Ann said so."}]}
    encoded = encode(file, record, tokenizer)
    assert runs_of(encoded, tokenizer) == [(f"Ann said so.{END}", True)]
    assert encoded.n_labels == len(encoded.ids) - 1


@pytest.mark.parametrize("key", ["system", "input", "history"])
@pytest.mark.parametrize("value", [None, "", "absent"], ids=["null", "empty", "absent"])
def test_optional_alpaca_field_may_be_left_out(key, value, file):
    record = {k: v for k, v in {**ALPACA, key: value}.items() if v != "absent"}
    (sample,) = read_samples(write_lines(file, [record]))
    (full,) = read_samples(write_lines(file, [ALPACA]))
    assert len("".join(t.text for t in sample.turns)) < len("".join(t.text for t in full.turns))
    assert sample.turns[-1] == Turn("assistant", "Because.")


def test_ids_tags_and_unknown_keys(file):
    records = [{**PROMPT, "id": "a", "tags": ["x", "y"], "author": 7}, PROMPT]
    first, second = read_samples(write_lines(file, records))
    assert (first.id, first.tags) == ("a", ("x", "y"))
    assert (second.id, second.tags) == ("line-2", None)
    assert second.where == f"{file}:2"


def test_unnamed_sample_is_named_by_its_line(file):
    file.write_text("\n\n" + json.dumps(PROMPT) + "\n")
    (sample,) = read_samples(file)
    assert (sample.id, sample.where) == ("line-3", f"{file}:3")


def test_several_files_follow_each_other_each_in_its_format(tmp_path):
    first = write_lines(tmp_path / "first.jsonl", [{**PROMPT, "id": "a"}, PROMPT])
    second = write_lines(tmp_path / "second.jsonl", [ALPACA])
    samples = read_samples(first, second)
    assert [(s.id, s.format, s.where) for s in samples] == [
        ("a", "prompt", f"{first}:1"),
        ("first-2", "prompt", f"{first}:2"),
        ("second-1", "alpaca", f"{second}:1"),
    ]
    assert [s.turns for s in samples[2:]] == [s.turns for s in read_samples(second)]


def test_an_id_counts_once_over_all_files(tmp_path):
    first, second = (
        write_lines(tmp_path / f"{name}.jsonl", [{**PROMPT, "id": "a"}]) for name in "xy"
    )
    with pytest.raises(DataError, match=rf"{second}:1: .*`a` again\nhint: first seen at {first}:1"):
        read_samples(first, second)
    with pytest.raises(DataError, match=rf"{first}:1: .*`a`"):
        read_samples(first, first)


TURN = {"role": "assistant", "content": "The first."}
TWO = [
    {"role": "user", "content": "Which?"},
    TURN,
    {"role": "user", "content": "Think again."},
    {"role": "assistant", "content": "The second."},
]
UNLEARNED = {"weight": 0, "loss": False, "train": False, "training": False}
LEARNED = {"weight": 1, "loss": True, "train": True, "training": True}


def with_turn(k: int, **changes: object) -> list[dict]:
    return [{**turn, **(changes if i == k else {})} for i, turn in enumerate(TWO)]


@pytest.mark.parametrize("key", UNLEARNED)
def test_answer_that_says_so_is_not_learned(key, file, tokenizer):
    encoded = encode(file, {"messages": with_turn(1, **{key: UNLEARNED[key]})}, tokenizer)
    assert runs_of(encoded, tokenizer) == [
        ("Which?\nThe first.\nThink again.\n", False),
        (f"The second.{END}", True),
    ]
    assert encoded.prompt.stop == encoded.loss_mask.index(True)


@pytest.mark.parametrize("key", LEARNED)
def test_answer_that_asks_to_be_learned_is_learned_like_one_without_a_flag(key, file, tokenizer):
    plain = encode(file, {"messages": TWO}, tokenizer)
    said = {"messages": with_turn(1, **{key: LEARNED[key]}, name="Ann")}
    assert encode(file, said, tokenizer) == plain
    assert encode(file, {"messages": with_turn(0, **{key: UNLEARNED[key]})}, tokenizer) == plain


def test_end_is_not_learned_after_a_last_answer_that_is_not(file, tokenizer):
    encoded = encode(file, {"messages": with_turn(3, weight=0)}, tokenizer)
    assert [text for text, learned in runs_of(encoded, tokenizer) if learned] == ["The first."]


def test_flags_are_obeyed_in_conversations_of_sharegpt_and_dialogues(file, tokenizer):
    conversations = [
        {"from": "human", "value": "Which?", "train": False},
        {"from": "gpt", "value": "The first.", "train": False},
        {"from": "gpt", "value": "The second.", "train": True},
    ]
    dialogue = [
        {"role": "B", "text": "Which?"},
        {"role": "C", "text": "The first.", "loss": False},
        {"role": "C", "text": "The second."},
    ]
    for record in ({"conversations": conversations}, {"dialogue": dialogue}):
        encoded = encode(file, record, tokenizer)
        ((text, _),) = [run for run in runs_of(encoded, tokenizer) if run[1]]
        assert text.strip() == f"The second.{END}"


def test_masked_answer_stays_unlearned_under_a_chat_template(file, tmp_path):
    tokenizer = chat_tokenizer(tmp_path, TEMPLATE)
    encoded = encode(file, {"messages": with_turn(1, weight=0)}, tokenizer)
    assert [text for text, learned in runs_of(encoded, tokenizer) if learned] == [
        "The second.</>\n"
    ]


def test_flags_and_whole_text_contradict_each_other(file, tokenizer):
    with pytest.raises(DataError, match=f"^{file}:1: expected turns without a flag"):
        encode(file, {"messages": with_turn(0, train=False)}, tokenizer, whole_text=True)


BAD_TURNS = {
    "unknown-key": ({"train_detail": [1]}, "got: `train_detail`"),
    "tool-calls": ({"tool_calls": [{"id": "x"}]}, "got: `tool_calls`"),
    "reasoning": ({"reasoning_content": "Hm."}, "got: `reasoning_content`"),
    "half-weight": ({"weight": 0.5}, "`weight` to be 0 or 1, got: 0.5"),
    "number-loss": ({"loss": 0}, "`loss` to be true or false, got: 0"),
    "text-train": ({"train": "no"}, "`train` to be true or false, got: 'no'"),
    "contradiction": ({"weight": 0, "train": True}, "weight and train to agree"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_TURNS.values(), ids=BAD_TURNS)
def test_key_of_a_turn_that_cannot_be_obeyed_is_refused(file, changes, message):
    write_lines(file, [{"messages": TWO}, {"messages": with_turn(1, **changes)}])
    with pytest.raises(DataError, match=rf"^{file}:2 \(messages\[1\]\): expected .*{message}"):
        read_samples(file)


def test_learned_turn_of_the_user_is_refused(file):
    with pytest.raises(DataError, match=r"only the assistant's turns .* weight in a turn of the u"):
        read_samples(write_lines(file, [{"messages": with_turn(0, weight=1)}]))


def test_keys_of_a_turn_that_hold_nothing_are_no_keys(file):
    record = {"messages": with_turn(1, tool_calls=[], refusal=None, weight=None, name="Ann")}
    (sample,) = read_samples(write_lines(file, [record]))
    assert sample.turns == read_samples(write_lines(file, [{"messages": TWO}]))[0].turns


def test_sample_of_which_no_answer_is_to_be_learned_is_refused(file):
    turns = [{**turn, "train": False} for turn in TWO]
    with pytest.raises(DataError, match=f"^{file}:1: expected a turn to learn, got none"):
        read_samples(write_lines(file, [{"messages": turns}]))


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("messages", "tools", [{"type": "function"}]),
        ("messages", "system", "Judge."),
        ("prompt", "history", [["a", "b"]]),
        ("prompt", "weight", 0),
        ("dialogue", "input", "A text."),
    ],
)
def test_key_that_another_format_would_learn_from_is_refused(file, kind, key, value):
    write_lines(file, [{**FORMATS[kind], key: value}])
    with pytest.raises(DataError, match=f"^{file}:1: expected a sample of format .* `{key}`, got"):
        read_samples(file)
    empty: object = [] if isinstance(value, list) else None
    read_samples(write_lines(file, [{**FORMATS[kind], key: empty}]))


TEMPLATE = """\
{%- for m in messages %}
<{{ m.role }}>{{ m.content }}</>
{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


def chat_tokenizer(tmp_path: Path, template: str) -> Tokenizer:
    path = tmp_path / "chat.jinja"
    path.write_text(template)
    return Tokenizer(DEMO / "model", template=str(path))


def test_jinja_file_renders_the_turns_and_closes_the_learned_ones_itself(file, tmp_path):
    tokenizer = chat_tokenizer(tmp_path, TEMPLATE)
    encoded = encode(file, SHAREGPT, tokenizer)
    assert runs_of(encoded, tokenizer) == [
        ("<system>Judge.</>\n<user>Who?</>\n<assistant>", False),
        ("Ann.</>\n", True),
        ("<user>Why?</>\n<assistant>", False),
        ("Because.</>\n", True),
    ]


def test_template_that_leaves_nothing_to_learn_is_refused(file, tmp_path):
    template = "{% for m in messages if m.role == 'user' %}<{{ m.content }}>{% endfor %}"
    with pytest.raises(DataError, match=f"^{file}:1: expected a template that renders every turn"):
        encode(file, SHAREGPT, chat_tokenizer(tmp_path, template))


def test_plain_is_the_default_template(file, tmp_path, tokenizer):
    plain = Tokenizer(DEMO / "model", template="plain")
    assert encode(file, SHAREGPT, plain) == encode(file, SHAREGPT, tokenizer)


@pytest.mark.parametrize(
    "template",
    ["{{ messages | length }}" + TEMPLATE, "{{ messages[-1].content }}"],
    ids=["counts-turns", "last-turn-only"],
)
def test_template_that_rewrites_earlier_turns_is_refused(file, tmp_path, template):
    with pytest.raises(DataError, match=f"^{file}:1: expected a chat template that only appends"):
        encode(file, SHAREGPT, chat_tokenizer(tmp_path, template))


THINKING = """\
{%- for m in messages %}
<{{ m.role }}>{% if loop.last and m.role == 'assistant' and '<think>' not in m.content -%}
<think>

</think>

{% endif %}{{ m.content }}</>
{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""
BLOCK = "<think>\n\n</think>\n\n"


def test_what_a_template_inserts_before_the_answer_is_prompt(file, tmp_path):
    tokenizer = chat_tokenizer(tmp_path, THINKING)
    encoded = encode(file, {"messages": TWO[:2]}, tokenizer)
    prompt = f"<user>Which?</>\n<assistant>{BLOCK}"
    assert runs_of(encoded, tokenizer) == [(prompt, False), ("The first.</>\n", True)]
    assert tokenizer.render_context("Which?", "The first.") == prompt


def test_thoughts_that_the_answer_brings_itself_are_learned(file, tmp_path):
    tokenizer = chat_tokenizer(tmp_path, THINKING)
    answer = {**TURN, "content": "<think>Hm.</think> The first."}
    encoded = encode(file, {"messages": [TWO[0], answer]}, tokenizer)
    assert runs_of(encoded, tokenizer) == [
        ("<user>Which?</>\n<assistant>", False),
        ("<think>Hm.</think> The first.</>\n", True),
    ]


# as Qwen3's: an empty block before the last answer, and no thoughts in the answers before it
LIKE_QWEN3 = """\
{%- for m in messages %}
{%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}
{%- set thoughts = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{{- '<' ~ m.role ~ '>' }}
{%- if m.role == 'assistant' and loop.last %}
{{- '<think>\\n' ~ (thoughts if '</think>' in m.content else '') ~ '\\n</think>\\n\\n' }}
{%- endif %}
{{- (content if m.role == 'assistant' else m.content) ~ '</>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""
THOUGHT = "<think>\nHm.\n</think>\n\nThe first."


@pytest.mark.parametrize("answer", ["The first.", THOUGHT], ids=["none", "thoughts"])
def test_an_option_is_scored_after_what_training_puts_before_it(file, tmp_path, answer):
    tokenizer = chat_tokenizer(tmp_path, LIKE_QWEN3)
    encoded = encode(file, {"messages": [TWO[0], {**TURN, "content": answer}]}, tokenizer)
    (prompt, _), (learned, _) = runs_of(encoded, tokenizer)
    assert learned == f"{answer}</>\n"
    assert tokenizer.render_context(TWO[0]["content"], answer) == prompt
    pair = {"context": TWO[0]["content"], "good": answer, "bad": answer.replace("first", "last")}
    item = encode_item(
        parse_pair(pair, "p.jsonl:1"), tokenizer, "split", score_eos=False, max_positions=512
    )
    assert tokenizer.decode(item.options[0].context_ids) == prompt
    assert tokenizer.decode(item.options[0].option_ids) == answer


@pytest.mark.parametrize(
    ("good", "message"),
    [
        (THOUGHT, "options that all bring their own thoughts, or none of them, got some of each"),
        ("<think>Hm.</think> Yes.", "an answer as it stands, got one that changes `<think>Hm."),
    ],
)
def test_options_in_two_prompts_or_changed_by_the_template_are_refused(tmp_path, good, message):
    tokenizer = chat_tokenizer(tmp_path, LIKE_QWEN3)
    item = parse_pair({"context": "Which?", "good": good, "bad": "No."}, "p.jsonl:1")
    with pytest.raises(DataError, match=f"^p.jsonl:1: expected .*{message}"):
        encode_item(item, tokenizer, "split", score_eos=False, max_positions=512)


def test_last_answer_is_learned_after_others_as_the_template_renders_them(file, tmp_path):
    tokenizer = chat_tokenizer(tmp_path, LIKE_QWEN3)
    first, second = {**TURN, "content": THOUGHT}, {**TURN, "content": "Now the last."}
    turns = [TWO[0], first, {"role": "user", "content": "Sure?"}, second]
    with pytest.raises(DataError, match=f"^{file}:1: expected .* only appends") as caught:
        encode(file, {"messages": turns}, tokenizer)
    assert '"train": false' in str(caught.value.hint)
    turns[1] = {**first, "train": False}
    encoded = encode(file, {"messages": turns}, tokenizer)
    prompt = f"<user>Which?</>\n<assistant>The first.</>\n<user>Sure?</>\n<assistant>{BLOCK}"
    assert runs_of(encoded, tokenizer) == [(prompt, False), ("Now the last.</>\n", True)]


@pytest.mark.parametrize(
    ("template", "left_out"),
    [
        (TEMPLATE.replace("messages %}", "messages if m.role != 'system' %}"), "system's `Judge.`"),
        (TEMPLATE.replace("m.content", "m.content | upper"), "system's `Judge.`"),
        ("{{ prompt }}", "system's `Judge.`"),
    ],
    ids=["drops-system", "changes", "other-variable"],
)
def test_template_that_leaves_out_or_changes_a_turn_is_refused(file, tmp_path, template, left_out):
    message = f"^{file}:1: expected a template that renders every turn .* the {left_out}"
    with pytest.raises(DataError, match=message) as caught:
        encode(file, SHAREGPT, chat_tokenizer(tmp_path, template))
    assert "a template has `messages` (each with `role` and `content`)" in str(caught.value.hint)
    assert ("also reads `prompt`" in str(caught.value.hint)) is (template == "{{ prompt }}")


def test_control_token_in_any_turn_is_refused_unless_it_is_asked_for(file, tokenizer):
    for key in PROMPT:
        record = {**PROMPT, key: f"{PROMPT[key]} old{END} park"}
        message = f"^{file}:1: expected a text without control tokens, got `<.endoftext.>` in it"
        with pytest.raises(DataError, match=message):
            encode(file, record, tokenizer)
    encoded = encode(file, record, Tokenizer(DEMO / "model", allow_special=True))
    assert encoded.ids.count(tokenizer.end_id) == 2


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
    with pytest.raises(DataError, match=f"^{file}:1: expected at most 9 tokens, got at least"):
        encode_samples([sample], tokenizer, 9, "truncate")


def test_missing_template_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected --template plain, chat or a Jinja file"):
        Tokenizer(DEMO / "model", template=str(tmp_path / "absent.jinja"))


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


def line(record: object) -> bytes:
    return json.dumps(record).encode()


def without(record: dict, key: str) -> dict:
    return {k: v for k, v in record.items() if k != key}


def turns(key: str, *records: object) -> bytes:
    return line({key: list(records)})


MALFORMED = {  # the line, and what its message must say
    "no-response": (line(without(PROMPT, "response")), "no `response`"),
    "number": (line({**PROMPT, "prompt": 5}), "`prompt` is a number"),
    "null": (line({**PROMPT, "response": None}), "`response` is null"),
    "array": (line({**PROMPT, "response": ["a"]}), "`response` is an array"),
    "empty-text": (line({**PROMPT, "response": ""}), "`response`, got: an empty text"),
    "id-truth": (line({**PROMPT, "id": True}), "`id` is a truth value"),
    "tags-text": (line({**PROMPT, "tags": "x"}), "`tags`"),
    "tags-numbers": (line({**PROMPT, "tags": [1]}), "`tags`"),
    "no-output": (line(without(ALPACA, "output")), "no `output`"),
    "system-number": (line({**ALPACA, "system": 5}), "`system` is a number"),
    "history-text": (line({**ALPACA, "history": "x"}), r"`history` .* \[question, answer\]"),
    "history-flat": (line({**ALPACA, "history": ["a", "b"]}), r"\[question, answer\]"),
    "history-triple": (line({**ALPACA, "history": [["a", "b", "c"]]}), r"\[question, answer\]"),
    "history-number": (line({**ALPACA, "history": [["a", 2]]}), "`history` is a number"),
    "no-turns": (turns("messages"), "`messages`"),
    "turns-text": (line({"conversations": "x"}), "`conversations`"),
    "turn-text": (turns("messages", "x"), r"`messages\[0\]`"),
    "no-role": (turns("dialogue", {"text": "x"}), r"`dialogue\[0\].role` .* B \| C, got: None"),
    "other-role": (turns("messages", {"role": "tool", "content": "x"}), "got: 'tool'"),
    "array-role": (turns("messages", {"role": ["user"], "content": "x"}), r"got: \['user'\]"),
    "object-role": (turns("conversations", {"from": {}, "value": "x"}), "got: {}"),
    "no-content": (turns("messages", {"role": "user"}), r"messages\[0\].*no `content`"),
    "parts-of-content": (turns("messages", {"role": "user", "content": [{}]}), "is an array"),
    "nothing-to-learn": (turns("dialogue", {"role": "B", "text": "x"}), "turn to learn"),
    "unknown-format": (line({"question": "a", "answer": "b"}), "`prompt`, .*, got: `question`"),
    "no-keys": (b"{}", "got: none"),
    "not-json": (b'{"prompt": "a"', "column 15"),
    "two-objects": (line(PROMPT) + line(PROMPT), "Extra data"),
    "literal": (b'"text"', "JSON object, got: text"),
    "array-file": (b"[{}]", r"JSON object, got: an array\nhint: .* jq -c '.\[\]'"),
    "opened-array-file": (b"[", r"JSON object, got .*\nhint: .* jq -c '.\[\]'"),
    "duplicate-key": (b'{"prompt": "a", "prompt": "b"}', "`prompt` twice"),
    "nested-duplicate-key": (b'{"x": {"y": 1, "y": 2}}', "`y` twice"),
    "nan": (b'{"prompt": "a", "response": "b", "x": NaN}', "got: NaN"),
    "infinity": (b'{"prompt": "a", "response": "b", "x": -Infinity}', "got: -Infinity"),
    "huge-number": (b'{"x": ' + b"1" * 5000 + b"}", "expected a plain JSON object"),
    "deep": (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "expected a plain JSON object"),
    "surrogate": (b'{"prompt": "\\ud800", "response": "b"}', "`prompt`, got: a lone surrogate"),
    "nul": (b'{"prompt": "a", "response": "b\\u0000"}', "`response`, got: a NUL"),
    "latin-1": ('{"prompt": "é"}'.encode("latin-1"), "UTF-8, got byte 0xe9"),
    "utf-16": ("\ufeff{}".encode("utf-16-le"), "UTF-8, got byte 0xff"),
    "raw-newline": (b'{"prompt": "a\nb", "response": "c"}', "JSON object, got "),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_line_is_refused_with_its_number(file, bad, message):
    file.write_bytes(b"\n\n" + bad + b"\n")
    with pytest.raises(DataError, match=message) as caught:
        read_samples(file)
    assert str(caught.value).startswith(f"{file}:3")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("kind", [name for name in FORMATS if name != "prompt"])
def test_line_of_another_format_than_the_first_is_refused(file, kind):
    write_lines(file, [PROMPT, FORMATS[kind]])
    with pytest.raises(DataError, match=f"^{file}:2: expected text in `prompt`, got: no `prompt`"):
        read_samples(file)


def test_second_use_of_an_id_is_refused_and_the_first_named(file):
    write_lines(file, [{**PROMPT, "id": "a"}, {**PROMPT, "id": "b"}, {**PROMPT, "id": "a"}])
    message = f"^{file}:3: expected each id once, got `a` again\nhint: first seen at {file}:1$"
    with pytest.raises(DataError, match=message):
        read_samples(file)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"], ids=["empty", "blank", "BOM"])
def test_file_without_samples_is_refused(file, content):
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"^{file}: expected at least one sample"):
        read_samples(file)


def test_missing_file_is_refused(file):
    with pytest.raises(DataError, match=f"^{file}: expected a readable .* No such file"):
        read_samples(file)


def test_byte_order_mark_is_skipped(file):
    file.write_bytes(b"\xef\xbb\xbf" + line(PROMPT) + b"\n")
    assert read_samples(file)[0].turns[0].text == "Q: why?"


def test_carriage_returns_at_line_ends_are_skipped(file):
    file.write_bytes(b"\r\n".join([line(PROMPT), b"", line({**PROMPT, "id": "b"}), b""]))
    assert [sample.turns[1].text for sample in read_samples(file)] == [" Because."] * 2


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\u000b", "\u001e"], ids=ascii)
def test_unicode_separators_do_not_split_a_line(file, tokenizer, separator):
    record = {"prompt": f"a{separator}b", "response": f" c{separator}d"}
    encoded = encode(file, record, tokenizer)
    assert runs_of(encoded, tokenizer) == alternating([record["prompt"], record["response"] + END])


def test_last_line_needs_no_newline(file):
    file.write_bytes(line(PROMPT))
    assert len(read_samples(file)) == 1


@pytest.fixture(scope="module")
def composing(tmp_path_factory) -> Tokenizer:
    """A tokenizer whose file says NFC."""
    return Tokenizer(tiny_model(tmp_path_factory.mktemp("nfc")))


def test_accents_that_compose_across_the_boundary_are_refused(file, composing):
    tokenizer, record = composing, {"prompt": "cafe\u0301", "response": "\u0323 noir"}
    with pytest.raises(DataError, match=f"^{file}:1: expected token ids that decode to the text"):
        encode(file, record, tokenizer)


def test_accents_are_composed_within_a_part_where_the_tokenizer_says_so(file, tokenizer, composing):
    record = {"prompt": "cafe\u0301", "response": " noir"}
    encoded = encode(file, record, composing)
    assert runs_of(encoded, composing) == alternating(["caf\u00e9", f" noir{END}"])
    encoded = encode(file, record, tokenizer)  # its file has no normalizer
    assert runs_of(encoded, tokenizer) == alternating(["cafe\u0301", f" noir{END}"])
