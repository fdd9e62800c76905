"""Text to token ids: BOS, null contexts, the end token, and the boundary between two texts.

A context and what follows it are encoded separately (`split`), so that an option has the same ids
under its context and under the null context, and all options share the context's ids. What follows
a context is encoded by a copy of the tokenizer that adds no dummy prefix space (Llama 2 would turn
" She" into "▁", "▁She"). `joint` encodes both at once and charges a straddling token to the option.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cqa.data.template import Message, Template, read_template
from cqa.data.tokenizer_files import (
    State,
    backend,
    form_of,
    keeping_spaces,
    load_tokenizer,
    most_chars_per_token,
    one_message,
    panics_silenced,
    without_prefix_space,
)
from cqa.errors import DataError, ModelError

Boundary = Literal["split", "joint"]
MOST_COMPOSED = 4  # characters that NFC or NFKC make one of, such as ᾂ
Ids = tuple[int, ...]
END_OF_TEXT = "<|endoftext|>"
_MARK = "CqaAnswerStandsHere"  # an answer that shows where a template puts one


@dataclass(frozen=True, slots=True)
class Encoded:
    """An option's ids after its context, which starts with BOS if the tokenizer adds one."""

    context_ids: tuple[int, ...]
    option_ids: tuple[int, ...]
    boundary_mismatch: bool  # whether joint encoding gives other ids than split
    option_char_ends: tuple[int, ...]  # for each option token, where in the option's text it ends


class Tokenizer:
    """A Hugging Face fast tokenizer with the conventions that training and scoring share."""

    def __init__(
        self,
        folder: Path,
        *,
        null_token: str | None = None,
        template: str = "plain",
        allow_special: bool = False,
        second_null: bool = True,
    ) -> None:
        """Load the tokenizer of a model folder.

        Args:
            folder: Model folder with `tokenizer.json` or files that convert to it.
            null_token: Token that stands for "no context"; by default BOS, else `<|endoftext|>`,
                else EOS.
            template: `plain`, `chat` for the tokenizer's own chat template, or a Jinja file.
            allow_special: Whether texts may hold control tokens, which then are control tokens.
            second_null: Whether there is a second null context, the token and a newline.

        Raises:
            ModelError: There is no fast tokenizer, it needs remote code, or the token is unknown.
            ConfigError: The template cannot be read.
        """
        with one_message("expected a tokenizer", str(folder)), panics_silenced():
            self.hf = load_tokenizer(folder)
            self._template = self._read_template(template)
            state = json.loads(self.hf.backend_tokenizer.to_str())
            following = without_prefix_space(state)
            self._whole = backend(state)
            self._following = backend(following)
            self._normalizer = backend(keeping_spaces(following)).normalizer
            self._special = None if allow_special else _pattern_of_special(state)
            self._chars_per_token, self._form = most_chars_per_token(state), form_of(state)
            self.bos_ids = self._default_bos()
            made_of = [
                state,
                self.bos_ids,
                self.hf.special_tokens_map,
            ]  # the last names the end token
            text = json.dumps(made_of, sort_keys=True, default=str)
            self.digest = hashlib.sha256(text.encode()).hexdigest()
            self.end_id = self._end_id()
            self.null_ids = (self._null_id(null_token),)
            newline = self.encode_following("\n")
            self.null2_ids = self.null_ids + newline if second_null else None
        self._n_ids = sys.maxsize

    def encode_context(self, text: str) -> tuple[int, ...]:
        """Encode text that starts a sequence, BOS in front where the tokenizer adds one."""
        return self.bos_ids + tuple(_encode(self._whole, text).ids)

    def context_spans(self, text: str) -> tuple[tuple[int, int], ...]:
        """Return where in a text each id of `encode_context` is, in characters; BOS is nowhere."""
        return ((0, 0),) * len(self.bos_ids) + tuple(_encode(self._whole, text).offsets)

    def encode_following(self, text: str) -> tuple[int, ...]:
        """Encode text that follows other text: no BOS, no dummy prefix space."""
        return tuple(_encode(self._following, text).ids)

    def encode_pair(
        self, context: str, option: str, boundary: Boundary, where: str = ""
    ) -> Encoded:
        """Encode an option after its context, checking that the ids decode to the two texts.

        Raises:
            DataError: The ids fed do not decode to `context + option`, or the option gets no token.
        """
        alone = _encode(self._following, option)
        split = self.encode_context(context), tuple(alone.ids)
        *joint, joint_ends = self._encode_joint(context, option)
        merge = split != tuple(joint)
        context_ids, option_ids = split if boundary == "split" else joint
        ends = tuple(end for _, end in alone.offsets) if boundary == "split" else joint_ends
        if not option_ids or not context_ids:
            raise DataError(
                f"expected at least one token on each side of the boundary, got "
                f"{len(context_ids)} and {len(option_ids)}",
                where=where,
            )
        if self._normalise(context + option) != self._normalise(context) + self._normalise(option):
            raise _unrepresentable(where)
        self.check_round_trip(context + option, context_ids + option_ids, where)
        return Encoded(context_ids, option_ids, merge, ends)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text, special tokens included, nothing cleaned up."""
        return str(self._whole.decode(list(ids), skip_special_tokens=False))

    def decode_following(self, ids: Sequence[int]) -> str:
        """Decode ids that follow others: some decoders drop the space that a text begins with."""
        before = self.encode_following("a")
        return self.decode((*before, *ids)).removeprefix(self.decode(before))

    def limit_ids(self, vocab_size: int) -> None:
        """Refuse, from here on, ids that a model of this vocabulary does not have.

        Raises:
            ModelError: The null contexts or the end token have such an id.
        """
        self._n_ids = vocab_size
        self._refuse_unknown_ids((*(self.null2_ids or self.null_ids), self.end_id), "")

    def _refuse_unknown_ids(self, ids: Sequence[int], where: str) -> None:
        if ids and max(ids) >= self._n_ids:
            raise ModelError(
                f"expected token ids below the model's vocab_size {self._n_ids}, got {max(ids)} "
                f"for {self._whole.id_to_token(max(ids))!r}",
                where=where or None,
                hint="tokenizer and model do not belong together",
            )

    def refuse_special(self, text: str, where: str) -> None:
        """Refuse a text in which a control token is written, which would be encoded as that token.

        Raises:
            DataError: There is one, and such texts are not allowed.
        """
        found = self._special and (
            self._special.search(text) or self._special.search(self._normalise(text))
        )
        if found:
            raise DataError(
                f"expected a text without control tokens, got `{found[0]}` in it",
                where=where,
                hint="the tokenizer would encode it as that token, not as its letters; "
                "--allow-special takes it as the token",
            )

    def at_least_tokens(self, text: str) -> int:
        """Return a number of tokens that a text has at least, without encoding it."""
        if not self._chars_per_token:
            return 0
        if self._form and len(text) > self._chars_per_token:
            text = unicodedata.normalize(self._form, text)
        return -(-len(text) // self._chars_per_token)

    def most_chars(self, n_tokens: int) -> int | None:
        """Return a number of characters that always have more than so many tokens, if known."""
        if not self._chars_per_token:
            return None
        composed = MOST_COMPOSED if self._form else 1
        return (n_tokens + 1) * self._chars_per_token * composed

    @property
    def chat_template(self) -> str | None:
        """The source of the template; None for plain text."""
        return self._template.source if self._template else None

    @property
    def template_hint(self) -> str | None:
        """What a template has to work with; None for plain text."""
        return self._template.hint if self._template else None

    def render_chat(
        self, messages: Sequence[Message], *, prompt_only: bool, where: str = ""
    ) -> str:
        """Render messages by the chat template, which must not be plain.

        Args:
            messages: {"role", "content"} in order.
            prompt_only: End with what opens the assistant's answer.
            where: The `file:line` that they are of.

        Raises:
            ConfigError: The template does not render the same text every time.
            DataError: It fails on these messages.
        """
        assert self._template is not None
        text = self._template.render(messages, prompt_only=prompt_only, where=where)
        return text.removeprefix(self.hf.bos_token if self.bos_ids else "")

    def render_prompt(self, messages: Sequence[Message], answer: str, where: str = "") -> str:
        """Return all that the template puts before an answer to messages.

        That is what opens the answer, and what it inserts before the answer's text, such as an
        empty block of thoughts; before an answer that brings its own thoughts it inserts none.

        Raises:
            ConfigError: The template does not render the same text every time.
            DataError: It fails on these messages, or opens an answer in two ways.
        """
        opened = self.render_chat(messages, prompt_only=True, where=where)

        def rendered(content: str) -> str:
            turn = {"role": "assistant", "content": content}
            return self.render_chat([*messages, turn], prompt_only=False, where=where)

        before, found, _ = rendered(_MARK).partition(_MARK)
        if not found or before == opened:  # a template for prompts alone, or one that inserts none
            return opened
        whole = rendered(answer)
        if not whole.startswith(before) and whole.startswith(opened):
            if answer.strip() not in whole[len(opened) :]:
                raise DataError(
                    "expected a template that renders an answer as it stands, got one that changes "
                    f"`{answer.strip()[:40]}`",
                    where=where,
                    hint=f"it renders it as {whole[len(opened) :][:80]!r}; write it so",
                )
            return opened
        if not before.startswith(opened):
            raise DataError(
                "expected a chat template that only appends, got one that opens an answer as "
                f"{opened[-40:]!r} and renders it after {before[-40:]!r}",
                where=where,
                hint="give a Jinja file in which both are the same with --template",
            )
        return before

    def render_context(self, text: str, option: str, where: str = "") -> str:
        """Return the text that precedes an option: the context itself, or a chat prompt of it.

        Raises:
            DataError: The template leaves the context out.
        """
        if self._template is None:
            return text
        prompt = self.render_prompt([{"role": "user", "content": text}], option, where)
        if text.strip() not in prompt:
            raise DataError(
                "expected a template that renders the context, got a prompt without it",
                where=where,
                hint=self.template_hint,
            )
        return prompt

    def _encode_joint(self, context: str, option: str) -> tuple[Ids, Ids, Ids]:
        """Return the context's ids, the option's ids, and where the option's tokens end in it."""
        encoding = _encode(self._whole, context + option)
        cut = len(context)
        n_context = sum(end <= cut for _, end in encoding.offsets)
        ids = tuple(encoding.ids)
        ends = tuple(end - cut for _, end in encoding.offsets[n_context:])
        return self.bos_ids + ids[:n_context], ids[n_context:], ends

    def check_round_trip(self, text: str, ids: tuple[int, ...], where: str) -> None:
        """Refuse ids (BOS included) that do not decode to the text, or that the model lacks."""
        self._refuse_unknown_ids(ids, where)
        decoded = self.decode(ids[len(self.bos_ids) :])
        if decoded != self._normalise(text):
            raise _unrepresentable(where)

    def _normalise(self, text: str) -> str:
        return str(self._normalizer.normalize_str(text)) if self._normalizer else text

    def _read_template(self, choice: str) -> Template | None:
        held = self.hf.chat_template
        held = held.get("default") if isinstance(held, dict) else held
        if choice == "chat" and not held:
            raise ModelError(
                "expected a tokenizer with a chat template, got one without",
                hint="use --template plain, or a Jinja file",
            )
        return read_template(choice, held, self.hf.special_tokens_map)

    def _default_bos(self) -> tuple[int, ...]:
        """Return (bos,) if the tokenizer puts one in front by default, else ()."""
        plain = self.hf("a", add_special_tokens=False).input_ids
        bos = self.hf.bos_token_id
        full = self.hf("a").input_ids
        return (bos,) if bos is not None and full[: 1 + len(plain)] == [bos, *plain] else ()

    def _end_id(self) -> int:
        end = self._whole.token_to_id(END_OF_TEXT)
        end = self.hf.eos_token_id if end is None else end
        if end is None:
            raise ModelError(
                f"expected a tokenizer with {END_OF_TEXT} or an EOS token, got neither"
            )
        return int(end)

    def _null_id(self, named: str | None) -> int:
        if named is None:
            bos = self.hf.bos_token_id
            return int(bos) if bos is not None else self.end_id
        token = self._whole.token_to_id(named)
        if token is None:
            raise ModelError(
                f"expected --null-token to be one token of the vocabulary, got: {named!r}"
            )
        return int(token)


def _encode(backend: Any, text: str) -> Any:
    """Encode a text, nothing added.

    Raises:
        ModelError: The tokenizer fails, such as one without a token for what it does not know.
    """
    with one_message(f"expected a tokenizer that encodes {text[:40]!r}", ""):
        return backend.encode(text, add_special_tokens=False)


def _unrepresentable(where: str) -> DataError:
    return DataError(
        "expected token ids that decode to the text, got another text",
        where=where,
        hint="the tokenizer cannot represent this text across the boundary, "
        "for example a combining accent at the start of an option, or a sign that it writes for "
        "another one, such as ▁ for a space",
    )


def _pattern_of_special(state: State) -> re.Pattern[str] | None:
    """Return what finds the control tokens of a tokenizer in a text."""
    tokens = [token["content"] for token in state["added_tokens"] if token["special"]]
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
