"""A sample of every format, and what it becomes."""

from itertools import groupby
from pathlib import Path

from helpers import DEMO, write_lines

from cqa.data.samples import EncodedSample, encode_sample, read_samples
from cqa.data.tokenizer import Tokenizer

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


TURN = {"role": "assistant", "content": "The first."}
TWO = [
    {"role": "user", "content": "Which?"},
    TURN,
    {"role": "user", "content": "Think again."},
    {"role": "assistant", "content": "The second."},
]
TEMPLATE = """\
{%- for m in messages %}
<{{ m.role }}>{{ m.content }}</>
{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


def chat_tokenizer(tmp_path: Path, template: str) -> Tokenizer:
    path = tmp_path / "chat.jinja"
    path.write_text(template)
    return Tokenizer(DEMO / "model", template=str(path))
