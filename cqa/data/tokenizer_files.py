"""The tokenizer of a model folder, as its files say it, and variants of it.

`tokenizer.json` is the whole tokenizer: normalizer, pre-tokenizer, vocabulary, decoder. It is taken
as it stands. (transformers' AutoTokenizer picks a class by the model type, and some of those, such
as Qwen2's, build a normalizer and a pre-tokenizer of their own and drop the file's; on the files
that those models were published with both are the same.) Which tokens are special, and whether BOS
is added, is read by transformers from `tokenizer_config.json`. Without `tokenizer.json` the class
builds the tokenizer from `vocab.json` and `merges.txt` or from `tokenizer.model`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from cqa.errors import CqaError, ModelError

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
TOKENIZER_FILES = (  # all that make a tokenizer, with its chat template
    *VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
State = dict[str, Any]  # of a tokenizer, as tokenizer.json holds it


@contextmanager
def one_message(expected: str, where: str) -> Iterator[None]:
    """Turn whatever a tokenizer's libraries raise into one `ModelError`."""
    try:
        yield
    except CqaError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of Rust
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{expected}, got: {reason[:200]}", where=where or None) from error


@contextmanager
def panics_silenced() -> Iterator[None]:
    """Hold back what is written to stderr, and drop it if Rust panicked, which prints its stack."""
    try:
        own = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = type(error).__name__ == "PanicException"
            raise
        finally:
            os.dup2(own, 2)
            os.close(own)
            held.seek(0)
            said = held.read()
            if said and not panicked:
                os.write(2, said)


def load_tokenizer(folder: Path) -> Any:
    """Load a fast tokenizer of transformers.

    Raises:
        ModelError: There is none, or it needs remote code.
        BaseException: It is damaged; see `one_message`.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    _refuse_remote_code(folder)
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise ModelError(
            "expected a folder with a tokenizer, got none",
            where=str(folder),
            hint=f"one of {', '.join(VOCABULARIES)} makes one",
        )
    if (folder / "tokenizer.json").is_file():
        hf = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    else:  # mistral-common, where it is installed, would make other ids of the same files
        hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, mistral_format=False)
    if not hf.is_fast:
        raise ModelError(
            "expected a fast tokenizer (tokenizer.json), got a slow one", where=str(folder)
        )
    return hf


def _refuse_remote_code(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(
            f"expected a JSON tokenizer config, got: {reason}", where=str(path)
        ) from None
    if not isinstance(settings, dict):
        raise ModelError("expected a JSON object", where=str(path))
    if "auto_map" in settings:
        raise ModelError(
            "expected a tokenizer of transformers itself, got one that wants remote code",
            where=str(path),
        )


def backend(state: State) -> Any:
    """Return a tokenizer of the library `tokenizers` that cuts and pads nothing."""
    from tokenizers import Tokenizer as Backend

    made = Backend.from_str(json.dumps(state))
    made.no_truncation()
    made.no_padding()
    return made


def without_prefix_space(state: State) -> State:
    """Return a tokenizer's state with every rule removed that puts a space before the text."""

    def strip(part: State) -> State | None:
        kind = part.get("type")
        if kind == "Prepend":
            return None
        if kind == "Metaspace":
            return {**part, "prepend_scheme": "never"}
        return {**part, "add_prefix_space": False} if "add_prefix_space" in part else part

    return {**state, **{key: _each(state[key], strip) for key in ("normalizer", "pre_tokenizer")}}


def keeping_spaces(state: State) -> State:
    """Return a tokenizer's state whose normalizer leaves a space what decoding gives back for it.

    Some normalizers write a space as ▁, and the decoder undoes it.
    """

    def strip(part: State) -> State | None:
        marks = part.get("pattern") == {"String": " "} and part.get("content") == "▁"
        return None if part.get("type") == "Replace" and marks else part

    return {**state, "normalizer": _each(state["normalizer"], strip)}


def _each(part: Any, change: Any) -> Any:
    """Change a rule, or each of a sequence of them; a rule that becomes None goes."""
    if not isinstance(part, dict):
        return part
    if part.get("type") != "Sequence":
        return change(part)
    key = next(k for k in ("normalizers", "pretokenizers") if k in part)
    kept = [s for s in (_each(inner, change) for inner in part[key]) if s is not None]
    return {**part, key: kept} if kept else None


FORMS = {"NFC", "NFKC"}  # of Unicode, in which a text may have fewer characters


def form_of(state: State) -> Literal["NFC", "NFKC"] | None:
    """Return the form of Unicode that a normalizer brings a text to, if any."""
    forms = {rule["type"] for rule in _rules(state)}
    return "NFKC" if "NFKC" in forms else "NFC" if "NFC" in forms else None


def _rules(state: State) -> list[State]:
    normalizer = state["normalizer"] or {"type": "Sequence", "normalizers": []}
    rules: list[State] = normalizer.get("normalizers", [normalizer])
    return rules


def most_chars_per_token(state: State) -> int | None:
    """Return how many characters of a normal text one token stands for at most, if that is known.

    A token that takes in the spaces around it, or a normalizer or pre-tokenizer that drops
    characters, sets no such bound.
    """
    for rule in _rules(state):
        if rule["type"] not in ("Prepend", *FORMS) and rule.get("content") != "▁":
            return None
    if any(token["lstrip"] or token["rstrip"] for token in state["added_tokens"]):
        return None
    vocabulary = state["model"].get("vocab", {})
    words = [w if isinstance(w, str) else w[0] for w in vocabulary]
    words += [token["content"] for token in state["added_tokens"]]
    return max(map(len, words), default=1)
