"""A model that stays in memory: texts and items scored by calls, adapters swapped in place.

Rows and numbers are those that `cqa-fast score` writes, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args

from cqa.config import require
from cqa.data.items import Item, parse_continuation, parse_pair
from cqa.data.tokenizer import Tokenizer
from cqa.errors import ConfigError, DataError, NumericsError
from cqa.kernels.matmul import keep_sums_whole
from cqa.model.checkpoint import locate
from cqa.model.decoder import Decoder
from cqa.model.load import Device, Dtype
from cqa.model.memory import reported as memory_reported
from cqa.model.origin import check_origin
from cqa.schema.rows import ItemRow
from cqa.score.adapters import AdapterFolder, named_adapters
from cqa.score.config import EngineName, require_batch, require_sampling
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.effect import check_has_effect
from cqa.score.engine import Engine
from cqa.score.engines import make_engine
from cqa.score.generated import Generated, end_ids, generated, prompt_ids
from cqa.score.model_identity import ModelIdentity
from cqa.score.prefix_batch import EncodedItem, PrefixBatch, encode_item
from cqa.score.sampling import sample
from cqa.score.scorer import score_rows
from cqa.text import named

Items = Iterable[Item | Mapping[str, Any] | tuple[str, str, str]]
HINT = "--dtype bf16, a shorter text, or a device with more memory"


class Current(Enum):
    """Stands for the adapter that `Model.use` named last."""

    CURRENT = "current"


CURRENT = Current.CURRENT
AdapterChoice = str | Path | None | Literal[Current.CURRENT]


@dataclass(slots=True)
class _Attached:
    """The adapter in the engine's weights."""

    path: Path
    found: AdapterFolder
    digest: str
    has_effect: bool = False  # once it is seen to change a score


class Model:
    """A base model in memory with one adapter at a time, or none; made by `cqa.load`.

    Attributes:
        tokenizer: The tokenizer with its null contexts; `tokenizer.hf` is transformers' own.
        max_positions: How many tokens context and continuation may have together.
    """

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        *,
        device: Device = "auto",
        dtype: Dtype = "auto",
        null_token: str | None = None,
        template: str = "plain",
        allow_special: bool = False,
        engine: EngineName = "cqa",
    ) -> None:
        """Load a base, and attach an adapter where one is named; see `cqa.load`."""
        for name, value, kind in (
            ("device", device, Device), ("dtype", dtype, Dtype), ("engine", engine, EngineName),
        ):  # fmt: skip
            known = get_args(kind)
            require(value in known, f"{name} to be {' | '.join(known)}", named(repr(value)))
        keep_sums_whole()
        folder = locate(str(model))
        found = [] if adapter is None else [_one(Path(adapter))]
        self._folder = folder
        self._engine: Engine = make_engine(engine, folder, found, device=device, dtype=dtype)
        self.max_positions = self._engine.max_positions
        self.tokenizer = Tokenizer(
            folder, null_token=null_token, template=template, allow_special=allow_special
        )
        self.tokenizer.limit_ids(self._engine.vocab_size)
        self._attached: _Attached | None = None
        self._chosen = None if adapter is None else Path(adapter)
        with memory_reported("the model", HINT):
            self._identity = self._engine.open()
        self.use(adapter)

    @property
    def decoder(self) -> Decoder:
        """Our decoder, with the adapter of the last call in its weights.

        Raises:
            ConfigError: Another engine computes.
        """
        if not isinstance(self._engine, DecoderEngine):
            raise ConfigError("expected engine cqa, got another, which has no decoder of ours")
        return self._engine.base.decoder

    @property
    def adapter(self) -> Path | None:
        """The adapter that calls score with unless they name another; None is the base."""
        return self._chosen

    def use(self, adapter: str | Path | None) -> None:
        """Score with an adapter from here on, read anew from its folder; None is the base.

        It takes the place of the one before in the resident weights. Only an adapter of more
        columns than there is room for has the base loaded again, once.

        Args:
            adapter: A folder in PEFT format.

        Raises:
            ModelError: It is missing, malformed, does not fit, or was trained on another base.
            ResourceError: There is not enough memory.
        """
        self._detach()
        self._attach(adapter)
        self._chosen = None if adapter is None else Path(adapter)

    def logprobs(
        self, context: str, continuation: str, *, adapter: AdapterChoice = CURRENT
    ) -> list[float]:
        """Return ln P of every token of a continuation after its context.

        Both are encoded separately, as `score` does by default, and nothing is put between them,
        so the continuation brings its own space.

        Args:
            context: The text before; through the template where `load` was given one.
            continuation: The text that is scored.
            adapter: For this call only: a folder, or None for the base.

        Returns:
            As many floats as the continuation has tokens, in nats, none above 0. `math.fsum` of
            them is S(x | y).

        Raises:
            DataError: A text is empty, too long, or has no tokens that decode to it.
            ModelError: The adapter is none of this base's.
            NumericsError: A value is not finite.
            ResourceError: There is not enough memory.
        """
        record = {"id": "text", "context": context, "continuation": continuation}
        (option,) = self._encode(parse_continuation(record, "")).options
        prefixes, pair = PrefixBatch(), (option.context_ids, option.option_ids)
        prefixes.add([pair])
        self._attach(adapter)
        with memory_reported("scoring", HINT):
            logp = self._engine.run(prefixes)[pair].logp
        if not all(map(math.isfinite, logp)):
            raise NumericsError("expected finite log-probabilities, got others")
        return logp

    def score(
        self,
        items: Items,
        *,
        adapter: AdapterChoice = CURRENT,
        tokens: bool = False,
        batch_tokens: int | None = None,
    ) -> list[ItemRow]:
        """Score items under the base or an adapter.

        Args:
            items: Each a dict with the keys of a line of a file (pairs, options, preferences,
                continuations), or a tuple (context, good, bad). One without an id is called
                items-1, items-2 … by its place.
            adapter: For this call only: a folder, or None for the base.
            tokens: Whether the rows hold per-token values.
            batch_tokens: Most tokens in one pass; rows are bit-identical for every value. By
                default 4,096, on CUDA about 32,768.

        Returns:
            A row per item, in their order; `row.to_json()` is a line of scores.jsonl without its
            checksum. Log-probabilities are sums over tokens, in nats.

        Raises:
            ConfigError: `batch_tokens` is out of range.
            DataError: An item is malformed, too long, or its id comes twice.
            ModelError: The adapter is none of this base's, or changes no score.
            NumericsError: A score is not finite.
            ResourceError: There is not enough memory for one item alone.
        """
        require_batch(batch_tokens)
        encoded = [self._encode(item) for item in parsed_items(items)]
        self._attach(adapter)
        attached = self._attached
        if attached is not None and not attached.has_effect and encoded:
            check_has_effect(self._engine, attached.found, encoded, self.tokenizer)
            attached.found.kept, attached.has_effect = None, True
        found, digest = (attached.found, attached.digest) if attached else (None, None)
        shared = ModelIdentity.of(self._identity, self.tokenizer, boundary="split", score_eos=False)
        model = shared.model_of(found, digest)
        passes = score_rows(
            self._engine.run,
            encoded,
            self.tokenizer,
            batch_tokens=batch_tokens or self._engine.pass_rows,
            adapter=model.adapter,
            model_key=model.model_key,
            tokens=tokens,
        )
        return [row for rows, _ in passes for row in rows]

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        n_samples: int = 1,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        adapter: AdapterChoice = CURRENT,
        places: Sequence[str] | None = None,
    ) -> list[list[Generated]]:
        """Draw texts after prompts; none depends on what else is drawn.

        Args:
            prompts: One text or several; through the template where `load` was given one.
            n_samples: How many texts after each. Equal prompts get equal texts.
            max_tokens: Most tokens of a text; it ends before, at the model's or the tokenizer's
                end token, or at the model's last position.
            temperature: Logits are divided by it; 0 takes the most probable token.
            top_p: Mass of the smallest set of tokens that is drawn from.
            seed: Of everything random.
            adapter: For this call only: a folder, or None for the base.
            places: What errors call each prompt, such as its `file:line`.

        Returns:
            For each prompt its texts, with what scoring says of their tokens.

        Raises:
            ConfigError: A setting is out of range, or the engine is not cqa.
            DataError: A prompt is empty, too long, or has no tokens that decode to it.
            ModelError: The adapter is none of this base's.
            NumericsError: A logit is not finite.
            ResourceError: There is not enough memory.
        """
        require_sampling(
            n_samples=n_samples, max_tokens=max_tokens, temperature=temperature, top_p=top_p,
            seed=seed,
        )  # fmt: skip
        several = [prompts] if isinstance(prompts, str) else prompts
        places = places or [f"prompt {k}" for k, _ in enumerate(several, start=1)]
        contexts = [
            prompt_ids(text, self.tokenizer, self.max_positions, where)
            for text, where in zip(several, places, strict=True)
        ]
        ends = end_ids(self._folder, self.tokenizer)
        self._attach(adapter)
        with memory_reported("sampling", HINT):
            drawn = sample(
                self.decoder,
                contexts,
                n_samples=n_samples,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                end_ids=ends,
            )
        return [[generated(one, self.tokenizer) for one in samples] for samples in drawn]

    def _encode(self, item: Item) -> EncodedItem:
        return encode_item(
            item, self.tokenizer, "split", score_eos=False, max_positions=self.max_positions
        )

    def _detach(self) -> None:
        self._engine.use(None)
        self._attached = None

    def _attach(self, adapter: AdapterChoice) -> None:
        """Bring the weights to an adapter, unless it is the one that is there."""
        wanted = self._chosen if isinstance(adapter, Current) else adapter
        if wanted is None:
            self._detach()
            return
        path = Path(wanted)
        if self._attached is not None and self._attached.path == path:
            return
        self._detach()
        found = _one(path)
        with memory_reported("the model", HINT):
            self._engine.make_room(found)
        digest = found.digest()
        check_origin(
            found.folder, model_digest=self._identity.model, tokenizer_digest=self.tokenizer.digest
        )
        with memory_reported("the adapter", HINT):
            self._engine.use(found)
            found.check_unchanged(digest)
        self._attached = _Attached(path, found, digest)


def _one(path: Path) -> AdapterFolder:
    (found,) = named_adapters([path])
    return found


def parsed_items(items: Items) -> list[Item]:
    """Check items given in Python by the rules of the files.

    Raises:
        DataError: One is malformed, or an id comes twice.
    """
    parsed: list[Item] = []
    seen: dict[str, int] = {}
    for k, given in enumerate(items, start=1):
        item = _parsed(given, k)
        if item.id in seen:
            raise DataError(
                f"expected each id once, got `{item.id}` twice",
                where=f"item {k}",
                hint=f"first seen at item {seen[item.id]}",
            )
        seen[item.id] = k
        parsed.append(item)
    return parsed


def _parsed(given: Any, k: int) -> Item:
    if isinstance(given, Item):
        return given
    where = f"item {k} (from 1)"
    if isinstance(given, tuple) and len(given) == 3:
        given = dict(zip(("context", "good", "bad"), given, strict=True))
    if not isinstance(given, Mapping):
        raise DataError(
            f"expected a dict or a tuple (context, good, bad), got: {given!r:.80}", where=where
        )
    record = dict(given)
    if record.get("id") is None:
        record["id"] = f"items-{k}"
    pair = "good" in record or "options" in record or "chosen" in record
    parse = parse_continuation if "continuation" in record and not pair else parse_pair
    try:
        return parse(record, where)
    except TypeError as error:  # an unknown key holds what is not JSON
        raise DataError(f"expected values as JSON has them, got: {error}", where=where) from None
