"""Samples under a chat template: what is prompt, what is learned, and what is refused."""

import pytest
from data.training_samples import SHAREGPT, TEMPLATE, TURN, TWO, chat_tokenizer, encode, runs_of
from helpers import DEMO

from cqa.data.items import parse_pair
from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, DataError
from cqa.score.prefix_batch import encode_item


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


def test_missing_template_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected --template plain, chat or a Jinja file"):
        Tokenizer(DEMO / "model", template=str(tmp_path / "absent.jinja"))
