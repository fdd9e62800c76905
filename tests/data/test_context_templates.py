"""Contexts under a template: rendered as in transformers, and what is refused."""

from pathlib import Path

import pytest
from data.tokenizers import BOUNDARIES, CHATML, folder_of
from helpers import DEMO

from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, CqaError, DataError, ModelError


@pytest.fixture
def chatml(tmp_path) -> str:
    path = tmp_path / "chat.jinja"
    path.write_text(CHATML, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_jinja_file_makes_a_prompt_of_a_context(chatml, boundary):
    tokenizer = Tokenizer(DEMO / "model", template=chatml)
    prompt = tokenizer.render_context("Why did she run?", "Yes.")
    assert prompt == "<|im_start|>user\nWhy did she run?<|im_end|>\n<|im_start|>assistant\n"
    encoded = tokenizer.encode_pair(prompt, "Because.", boundary)
    assert tokenizer.decode(encoded.context_ids) == prompt
    assert tokenizer.decode(encoded.option_ids) == "Because."
    assert encoded.context_ids[0] == tokenizer.hf.convert_tokens_to_ids("<|im_start|>")


def test_chat_template_of_the_tokenizer_itself_is_used():
    tokenizer = Tokenizer(folder_of("qwen2.5-tokenizer"), template="chat")
    prompt = tokenizer.render_context("为什么？", "Yes.")
    assert prompt.endswith("<|im_start|>user\n为什么？<|im_end|>\n<|im_start|>assistant\n")
    encoded = tokenizer.encode_pair(prompt, "因为下雨。", "split")
    assert tokenizer.decode(encoded.context_ids + encoded.option_ids) == prompt + "因为下雨。"


def test_bos_of_a_template_is_not_doubled(tmp_path):
    template = tmp_path / "bos.jinja"
    template.write_text("{{ bos_token }}Q: {{ messages[0].content }}\nA:", encoding="utf-8")
    tokenizer = Tokenizer(folder_of("stories260k"), template=str(template))
    prompt = tokenizer.render_context("Why?", "Yes.")
    assert prompt == "Q: Why?\nA:"
    assert tokenizer.encode_context(prompt).count(tokenizer.bos_ids[0]) == 1


def test_template_of_a_tokenizer_without_one_is_refused():
    with pytest.raises(ModelError, match=r"expected .* chat template, got one without\nhint: "):
        Tokenizer(DEMO / "model", template="chat")


def test_missing_template_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected --template plain, chat or a Jinja file, got: "):
        Tokenizer(DEMO / "model", template=str(tmp_path / "absent.jinja"))


@pytest.mark.parametrize(
    "template", ["{% for m in %}", "{{ raise_exception('no') }}"], ids=["syntax", "raises"]
)
def test_template_that_does_not_render_is_refused(tmp_path, template):
    path = tmp_path / "bad.jinja"
    path.write_text(template, encoding="utf-8")
    with pytest.raises(CqaError, match="expected "):
        Tokenizer(DEMO / "model", template=str(path)).render_context("Why?", "Yes.")


LATER = """\
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif -%}
Today: {{ date_string }}. {{ messages[0].content }}"""


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (LATER, "reads the clock"),
        ("Hi\n{{ [1, 2] | random }}{{ messages[0].content }}", "draws at random"),
        ("Hi\n{{ [[1, 2]] | map('random') | list }}{{ messages[0].content }}", "draws at random"),
        ("Hi\n{{ lipsum() }}{{ messages[0].content }}", "draws at random"),
    ],
    ids=["clock", "filter", "map", "lipsum"],
)
def test_template_that_may_render_another_text_next_time_is_refused(tmp_path, template, what):
    path = tmp_path / "t.jinja"
    path.write_text(template)
    tokenizer = Tokenizer(DEMO / "model", template=str(path))
    with pytest.raises(ConfigError, match=rf"^{path}:\d: expected .* every time, .* {what}\nhint"):
        tokenizer.render_context("Why?", "Yes.", "a.jsonl:3")


def test_date_that_is_written_into_the_template_is_rendered(tmp_path):
    path = tmp_path / "t.jinja"
    path.write_text("{% set date_string = '26 Jul 2024' %}" + LATER)
    tokenizer = Tokenizer(DEMO / "model", template=str(path))
    assert tokenizer.render_context("Why?", "Yes.") == "Today: 26 Jul 2024. Why?"


ENDLESS = {
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "doubling": "{% set n = namespace(s='aa') %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}",
    "product": "{{ messages[0].content * 10 ** 12 }}",
    "method": "{% set n = namespace(s='aa') %}{% for a in range(99) %}"
    "{% set n.s = n.s.replace('a', 'aa') %}{% endfor %}",
    "power": "{{ 7 ** 10 ** 9 }}",
    "output": "{% for a in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "surrogate": "{{ messages[0].content }}{{ '\\ud800' }}",
    "fails": "{{ messages[0].content }}{{ a.b.c }}",
    "raises": "{{ raise_exception('x' * 10 ** 6) }}",
}


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_template_that_fails_or_finds_no_end_is_stopped_with_one_message(
    tmp_path, monkeypatch, template
):
    monkeypatch.setattr("cqa.data.template.SECONDS", 0.3)
    path = tmp_path / "t.jinja"
    path.write_text(template)
    tokenizer = Tokenizer(DEMO / "model", template=str(path))
    with pytest.raises(DataError, match=r"^a\.jsonl:3: expected ") as caught:
        tokenizer.render_context("Why?", "Yes.", "a.jsonl:3")
    assert len(str(caught.value)) < 800


QWEN3_LIKE = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.last -%}
    {{ '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content.lstrip('\\n') + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


@pytest.mark.parametrize(
    "template",
    [CHATML, QWEN3_LIKE, "{% macro m(x) %}[{{ x }}]{% endmacro %}"
     "{% for x in messages %}{{ m(x.role) ~ x.content | tojson }}{% if loop.first %}{% continue %}"
     "{% endif %}{% generation %}!{% endgeneration %}{% endfor %}{{ bos_token }}{{ 7 % 4 * 2 }}"],
    ids=["chatml", "thinking", "all-sorts"],
)  # fmt: skip
@pytest.mark.parametrize("prompt_only", [False, True])
def test_templates_render_as_in_transformers(chatml, template, prompt_only):
    Path(chatml).write_text(template, encoding="utf-8")
    tokenizer = Tokenizer(DEMO / "model", template=chatml)
    messages = [{"role": r, "content": f"{r} \n<é>"} for r in ("system", "user", "assistant")]
    theirs = tokenizer.hf.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=prompt_only
    )
    assert tokenizer.render_chat(messages, prompt_only=prompt_only) == theirs


def test_prompt_that_leaves_the_context_out_is_refused(chatml):
    Path(chatml).write_text("{{ prompt }}")
    tokenizer = Tokenizer(DEMO / "model", template=chatml)
    message = r"^a\.jsonl:3: expected .* the context, got a prompt without it\nhint: .*`prompt`"
    with pytest.raises(DataError, match=message):
        tokenizer.render_context("Why?", "Yes.", "a.jsonl:3")
