"""Text to token ids: BOS, null contexts, the end token, and the boundary between two texts.

A context and what follows it are encoded separately (`split`), so that an option has the same ids
under its context and under the null context, and all options share the context's ids. What follows
a context is encoded by a copy of the tokenizer that adds no dummy prefix space (Llama 2 would turn
" She" into "▁", "▁She"). `joint` encodes both at once and charges a straddling token to the option.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cqa.errors import ConfigError, DataError, ModelError

Boundary = Literal["split", "joint"]
Ids = tuple[int, ...]
END_OF_TEXT = "<|endoftext|>"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True, slots=True)
class Encoded:
    """An option's ids after its context, which starts with BOS if the tokenizer adds one."""

    context_ids: tuple[int, ...]
    option_ids: tuple[int, ...]
    boundary_merge: bool  # whether joint encoding gives other ids than split
    option_char_ends: tuple[int, ...]  # for each option token, where in the option's text it ends


class Tokenizer:
    """A Hugging Face fast tokenizer with the conventions that training and scoring share."""

    def __init__(
        self, folder: Path, *, null_token: str | None = None, template: str = "plain"
    ) -> None:
        """Load the tokenizer of a model folder.

        Args:
            folder: Model folder with `tokenizer.json` or files that convert to it.
            null_token: Token that stands for "no context"; by default BOS, else `<|endoftext|>`,
                else EOS.
            template: `plain`, `chat` for the tokenizer's own chat template, or a Jinja file.

        Raises:
            ModelError: There is no fast tokenizer, it needs remote code, or the token is unknown.
            ConfigError: The template cannot be read.
        """
        self.hf = _load_fast(folder)
        self.chat_template = _chat_template(self.hf, template)
        state = json.loads(self.hf.backend_tokenizer.to_str())
        self._whole = _backend(state)
        self._following = _backend(_without_prefix_space(state))
        self.bos_ids = self._default_bos()
        made_of = [state, self.bos_ids, self.hf.special_tokens_map]  # the last names the end token
        text = json.dumps(made_of, sort_keys=True, default=str)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.end_id = self._end_id()
        self.null_ids = (self._null_id(null_token),)
        self.null2_ids = self.null_ids + self.encode_following("\n")
        self._n_ids = sys.maxsize

    def encode_context(self, text: str) -> tuple[int, ...]:
        """Encode text that starts a sequence, BOS in front where the tokenizer adds one."""
        return self.bos_ids + tuple(self._whole.encode(text, add_special_tokens=False).ids)

    def encode_following(self, text: str) -> tuple[int, ...]:
        """Encode text that follows other text: no BOS, no dummy prefix space."""
        return tuple(self._following.encode(text, add_special_tokens=False).ids)

    def encode_pair(
        self, context: str, option: str, boundary: Boundary, where: str = ""
    ) -> Encoded:
        """Encode an option after its context, checking that the ids decode to the two texts.

        Raises:
            DataError: The ids fed do not decode to `context + option`, or the option gets no token.
        """
        alone = self._following.encode(option, add_special_tokens=False)
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

    def limit_ids(self, vocab_size: int) -> None:
        """Refuse, from here on, ids that a model of this vocabulary does not have.

        Raises:
            ModelError: The null contexts or the end token have such an id.
        """
        self._n_ids = vocab_size
        self._refuse_unknown_ids((*self.null2_ids, self.end_id), "")

    def _refuse_unknown_ids(self, ids: Sequence[int], where: str) -> None:
        if ids and max(ids) >= self._n_ids:
            raise ModelError(
                f"expected token ids below the model's vocab_size {self._n_ids}, got {max(ids)} "
                f"for {self._whole.id_to_token(max(ids))!r}",
                where=where or None,
                hint="tokenizer and model do not belong together",
            )

    def render_chat(self, messages: list[dict[str, str]], *, prompt_only: bool) -> str:
        """Render messages by the chat template, which must not be None.

        Args:
            messages: {"role", "content"} in order.
            prompt_only: End with what opens the assistant's answer.
        """
        try:
            text = self.hf.apply_chat_template(
                messages,
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=prompt_only,
            )
        except Exception as error:  # a template is a program: it can fail in any way
            reason = str(error) or type(error).__name__
            raise ConfigError(f"expected a template that renders, got: {reason}") from error
        return str(text).removeprefix(self.hf.bos_token if self.bos_ids else "")

    def render_context(self, text: str) -> str:
        """Return the text that precedes an option: the context itself, or a chat prompt of it."""
        if self.chat_template is None:
            return text
        return self.render_chat([{"role": "user", "content": text}], prompt_only=True)

    def _encode_joint(self, context: str, option: str) -> tuple[Ids, Ids, Ids]:
        """Return the context's ids, the option's ids, and where the option's tokens end in it."""
        encoding = self._whole.encode(context + option, add_special_tokens=False)
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
        normalizer = self._following.normalizer
        return str(normalizer.normalize_str(text)).replace("▁", " ") if normalizer else text

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


def _unrepresentable(where: str) -> DataError:
    return DataError(
        "expected token ids that decode to the text, got another text",
        where=where,
        hint="the tokenizer cannot represent this text across the boundary, "
        "for example a combining accent at the start of an option",
    )


def _load_fast(folder: Path) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    _refuse_remote_code(folder)
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ModelError("expected a folder with a tokenizer, got none", where=str(folder))
    try:
        hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of Rust
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"expected a tokenizer, got: {reason}", where=str(folder)) from error
    if not hf.is_fast:
        raise ModelError(
            "expected a fast tokenizer (tokenizer.json), got a slow one", where=str(folder)
        )
    return hf


def _chat_template(hf: Any, template: str) -> str | None:
    if template == "plain":
        return None
    if template == "chat":
        held = hf.chat_template
        held = held.get("default") if isinstance(held, dict) else held
        if not held:
            raise ModelError(
                "expected a tokenizer with a chat template, got one without",
                hint="use --template plain, or a Jinja file",
            )
        return str(held)
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"expected --template plain, chat or a Jinja file, got: {template}"
        ) from None


def _refuse_remote_code(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"expected a JSON tokenizer config, got: {error}", where=str(path)
        ) from None
    if not isinstance(settings, dict):
        raise ModelError("expected a JSON object", where=str(path))
    if "auto_map" in settings:
        raise ModelError(
            "expected a tokenizer of transformers itself, got one that wants remote code",
            where=str(path),
        )


def _backend(state: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(json.dumps(state))
    backend.no_truncation()
    backend.no_padding()
    return backend


def _without_prefix_space(state: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer's state with every rule removed that puts a space before the text."""

    def strip(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        kind = part.get("type")
        if kind == "Prepend":
            return None
        if kind == "Sequence":
            key = next(k for k in ("normalizers", "pretokenizers") if k in part)
            kept = [s for s in map(strip, part[key]) if s is not None]
            return {**part, key: kept} if kept else None
        if kind == "Metaspace":
            return {**part, "prepend_scheme": "never"}
        return {**part, "add_prefix_space": False} if "add_prefix_space" in part else part

    following = {key: strip(state[key]) for key in ("normalizer", "pre_tokenizer")}
    return {**state, **following}
