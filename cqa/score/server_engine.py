"""A server of completions as an engine: it has the weights, this machine the tokenizer.

A request for every text after every context, a few at a time. A server gives the log-probabilities
of the tokens that it is sent and nothing of the others, so there is no entropy and no rank. What it
does not give of a text is no number: the text is unscored, and the reason is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cqa.data.tokenizer import Ids, Tokenizer
from cqa.errors import ModelError
from cqa.files import inside, read_json
from cqa.model.block_rows import PASS_ROWS
from cqa.model.hugging_face import POSITIONS, UNLIMITED
from cqa.reading import read_object
from cqa.schema.capabilities import Capabilities
from cqa.score.adapters import AdapterFolder
from cqa.score.engine import EngineIdentity, SequenceScores, SequenceStats
from cqa.score.prefix_batch import PrefixBatch
from cqa.score_folder import CAPABILITIES
from cqa.server.address import Server
from cqa.server.client import FAILED, Client, LostError, RefusedError, served_no_more
from cqa.server.completions import NoLogprobsError, problem
from cqa.server.handshake import Prompts, shake_hands
from cqa.server.parallel import in_parallel

PROBE = ("The lamp was lit", " and she waited by the door.")
GENERATED = 1  # a token that a server generates needs a position too


class ServerEngine:
    """A model at a server; see `cqa.score.engine.Engine`.

    Attributes:
        capabilities: What the handshake found.
    """

    def __init__(
        self,
        folder: Path,
        server: Server,
        *,
        null_token: str | None = None,
        out: Path | None = None,
        client: Client | None = None,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Read the tokenizer, and probe the server.

        Args:
            folder: The tokenizer, and config.json where there is one.
            server: Where the model is.
            null_token: As for `Tokenizer`.
            out: The folder of scores, which may have been begun.
            client: What asks; by default one for the server's address and key.
            on_wait: As for `Client`; not called where `client` is given.

        Raises:
            ConfigError: The key that is named is not there.
            DataError: `out` holds a damaged capabilities.json.
            ModelError: There is no tokenizer, config.json is malformed, or a probe failed.
            ResourceError: The server does not answer.
        """
        self._server = server
        tokenizer = Tokenizer(folder, null_token=null_token, second_null=False)
        sizes = _sizes(folder)
        self.vocab_size = sizes.get("vocab_size", max(tokenizer.hf.get_vocab().values()) + 1)
        client = client or Client(server.base, server.key(), on_wait=on_wait)
        before = None if out is None else read_capabilities(out)
        self._completions, self.capabilities = shake_hands(
            client, server.model, _prompts(tokenizer), concurrency=server.concurrency, before=before
        )
        given = [sizes[key] for key in POSITIONS if key in sizes]
        if (most := self.capabilities.max_model_tokens) is not None:
            given.append(most - GENERATED)
        self.pass_rows = PASS_ROWS
        self.computes_elsewhere = False  # requests have threads of their own
        self.max_positions = min(given, default=UNLIMITED)

    def open(self) -> EngineIdentity:
        """Return what identifies the model, as far as a server tells; see `Engine.open`."""
        found = self.capabilities
        of_model = json.dumps([found.served_model, found.root], ensure_ascii=True)
        return EngineIdentity(
            engine="server",
            model=hashlib.sha256(of_model.encode()).hexdigest(),
            device="server",
            dtype="n/a",
            backend=f"{found.served_model} at a server, by {found.route}",
            batch_invariant=False,
        )

    def make_room(self, adapter: AdapterFolder) -> None:
        """Do nothing: a server has no room for adapters; `ScoreConfig` refuses them."""

    def use(self, adapter: AdapterFolder | None) -> None:
        """Score with what the server serves."""
        assert adapter is None, "ScoreConfig refuses adapters"

    def use_silenced(self, adapter: AdapterFolder) -> None:
        """Never called: `ScoreConfig` refuses adapters."""
        raise AssertionError("ScoreConfig refuses adapters")

    def run(self, prefixes: PrefixBatch) -> SequenceScores:
        """Score every sequence of a pass, a few at a time.

        Raises:
            ModelError: The server takes the key or the model's name no more.
            ResourceError: It does not answer.
        """
        pairs = [(context, o) for context, options in prefixes.sequences.items() for o in options]
        found = in_parallel(self._stats, pairs, self._server.concurrency)
        return dict(zip(pairs, found, strict=True))

    def _stats(self, pair: tuple[Ids, Ids]) -> SequenceStats:
        context, option = pair
        ids = (*context, *option)
        try:
            answer = self._completions.ask(ids)
        except RefusedError as refused:
            if refused.status == 404:
                raise served_no_more(self._server.model, refused, self._server.base) from None
            return SequenceStats.unscored(len(option), f"the server answered {refused}")
        except LostError as lost:
            if lost.status != FAILED or not self._still_scores():
                raise
            return SequenceStats.unscored(len(option), f"the server answered {lost.said}")
        except NoLogprobsError as error:
            return SequenceStats.unscored(len(option), f"the server gave {error}")
        if found := problem(answer, len(ids), since=len(context)):
            return SequenceStats.unscored(len(option), f"the server gave {found}")
        own = answer.own[len(context) :]
        return SequenceStats([min(value, 0.0) for value in own if value is not None])

    def _still_scores(self) -> bool:
        """Whether the server scores what it did: then what it fails on is at fault, not it."""
        try:
            self._completions.ask(self.capabilities.probe_ids, tries=1)
        except (LostError, RefusedError, NoLogprobsError):
            return False
        return True


def _prompts(tokenizer: Tokenizer) -> Prompts:
    """Return what the server is asked in the handshake."""
    first, then = PROBE
    context, option = tokenizer.encode_context(first), tokenizer.encode_following(then)
    spelled = tuple(i for sign in then for i in tokenizer.encode_following(sign))
    return Prompts(
        text=context + option,
        spelled=context + spelled if len(spelled) > len(option) else None,
        alone=tokenizer.null_ids + option,
    )


def _sizes(folder: Path) -> dict[str, int]:
    """Return the whole numbers above 0 that config.json holds of the text model."""
    raw: dict[str, Any] = read_object(folder / "config.json", ModelError) or {}
    held = raw.get("text_config")
    of_text = held if isinstance(held, dict) else {}
    return {k: v for k, v in (raw | of_text).items() if type(v) is int and v > 0}


def read_capabilities(out: Path) -> Capabilities | None:
    """Return what was found of the server that scored a folder; None if no server did.

    Raises:
        DataError: capabilities.json is damaged.
    """
    path = inside(out, CAPABILITIES)
    if not path.exists():
        return None
    return Capabilities.from_json(read_json(path), str(path))
