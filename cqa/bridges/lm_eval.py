"""lm-eval's tasks at the speed of the scorer: `lm_eval.simple_evaluate(model=CqaLM(…), tasks=…)`.

Texts become tokens by the rules of lm-eval's Hugging Face backend, so that log-likelihoods are
those of that backend; what follows one context is scored over one pass of it.
Source: lm-eval 0.4's `TemplateLM`, which this is a subclass of, and its `HFLM`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from cqa.data.tokenizer import Ids
from cqa.errors import ConfigError, DataError, NumericsError, ResourceError
from cqa.model.load import Device, Dtype
from cqa.model.memory import give_back, ran_out
from cqa.score.decoder_engine import run_prefix_batch
from cqa.score.engine import SequenceScores
from cqa.score.prefix_batch import PrefixBatch
from cqa.score.resident import Model

Pair = tuple[Ids, Ids]  # a context and what follows it
Request = tuple[Any, list[int], list[int]]  # lm-eval's: its texts or None, and their ids


class CqaLM(TemplateLM):  # type: ignore[misc]
    """A model of lm-eval that scores with this package; it generates no text."""

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        *,
        batch_tokens: int | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
    ) -> None:
        """Load a base and, if one is named, an adapter.

        Args:
            model: A folder in Hugging Face format, or a hub id.
            adapter: A folder in PEFT format; None is the base.
            batch_tokens: Most tokens in one pass; results are bit-identical for every value. By
                default 4,096, on CUDA about 32,768.
            device: auto (CUDA if a GPU is there), cpu or cuda.
            dtype: auto (bf16 on CUDA, fp32 on a CPU), fp32 or bf16.

        Raises:
            ModelError: Model, tokenizer and adapter do not fit together, or are not supported.
            ResourceError: There is not enough memory.
        """
        super().__init__()
        self.model = Model(model, adapter, device=device, dtype=dtype)
        self.tokenizer = self.model.tokenizer.hf
        self._device = self.model.decoder.device
        self.batch_tokens = batch_tokens or self.model.decoder.pass_rows

    @property
    def max_length(self) -> int:
        """The model's positions: what is longer loses its start."""
        return self.model.max_positions

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context: BOS, else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of requests knows the tokenizer by."""
        return self.model.tokenizer.digest

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Encode as the Hugging Face backend does: no second BOS before one that is written."""
        if add_special_tokens is None and string.startswith(
            self.tokenizer.decode(self.prefix_token_id)
        ):
            add_special_tokens = False
        chosen = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer.encode(string, **chosen)
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation by the tokenizer's own template."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return ln P of whole texts after the prefix token, nats, in windows where they are long.

        Raises:
            NumericsError: A log-likelihood is not finite.
            ResourceError: There is not enough memory for one sequence alone.
        """
        windows = [
            [
                _cut(context, following, self.max_length)
                for context, following in map(
                    make_disjoint_window,
                    get_rolling_token_windows(
                        token_list=self.tok_encode(text),
                        prefix_token=self.prefix_token_id,
                        max_seq_len=self.max_length,
                        context_len=1,
                    ),
                )
            ]
            for (text,) in (request.args for request in requests)
        ]
        found: SequenceScores = {}
        for scored in self._scored(pair for parts in windows for pair in parts):
            found.update(scored)
        totals = [math.fsum(found[pair].total for pair in parts) for parts in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:
        """Refuse: this package scores texts.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "expected tasks that compare or score given texts, got one that generates",
            hint="multiple_choice, loglikelihood and loglikelihood_rolling work here; "
            "lm-eval's own `hf` model generates",
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        """Return ln P in nats of each continuation, and whether greedy decoding would give it.

        Raises:
            DataError: A continuation has no token of its own, or more than the model has positions.
            NumericsError: A log-likelihood is not finite.
            ResourceError: There is not enough memory for one sequence alone.
        """
        pairs = [_cut(context, following, self.max_length) for _, context, following in requests]
        places: dict[Pair, list[int]] = {}
        for k, pair in enumerate(pairs):
            places.setdefault(pair, []).append(k)
        answers: list[tuple[float, bool]] = [(math.nan, False)] * len(pairs)
        for scored in self._scored(places):
            for pair, stats in scored.items():
                assert stats.rank is not None  # the decoder gives it
                greedy = not any(stats.rank)
                for k in places[pair]:
                    answers[k] = stats.total, greedy
                    if requests[k][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[k][0], answers[k])
        return answers

    def _scored(self, pairs: Iterable[Pair]) -> Iterator[SequenceScores]:
        """Score sequences pass by pass; where memory runs out, halve the token budget."""
        pending = [_by_context(pairs)]
        budget = self.batch_tokens
        while pending:
            waiting = pending.pop()
            prefixes, rest = _first_pass(waiting, budget)
            if rest:
                pending.append(rest)
            scored = self._run_or_none(prefixes)
            if scored is None:
                give_back()
                budget = max(1, min(budget, prefixes.n_rows) // 2)
                pending.append(waiting[: len(waiting) - len(rest)])
                continue
            if not all(math.isfinite(stats.total) for stats in scored.values()):
                raise NumericsError("expected finite log-likelihoods, got others")
            yield scored

    def _run_or_none(self, prefixes: PrefixBatch) -> SequenceScores | None:
        """Score a pass; return None where memory ran out and there is something to divide."""
        try:
            return run_prefix_batch(self.model.decoder, prefixes)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            if sum(map(len, prefixes.sequences.values())) > 1:
                return None
            raise ResourceError(
                f"expected enough memory for one sequence, got none for its {prefixes.n_rows} "
                "tokens",
                hint="--dtype bf16, or a device with more memory",
            ) from error


def _cut(context: Sequence[int], following: Sequence[int], max_length: int) -> Pair:
    """Return a sequence of at most one token more than positions: the last one is not fed.

    Raises:
        DataError: Nothing is left to score, or it alone is too long.
    """
    n = len(following)
    if not 1 <= n <= max_length:
        raise DataError(
            f"expected a continuation of 1 to {max_length} tokens, got {n}",
            hint="its text may have become part of the context's last token" if not n else None,
        )
    return tuple(context[-(max_length + 1 - n) :]), tuple(following)


def _by_context(pairs: Iterable[Pair]) -> list[Pair]:
    """Return each sequence once, those of one context together, in order of first appearance."""
    together: dict[Ids, dict[Ids, None]] = {}
    for context, following in pairs:
        together.setdefault(context, {})[following] = None
    return [(context, following) for context, held in together.items() for following in held]


def _first_pass(pairs: list[Pair], budget: int) -> tuple[PrefixBatch, list[Pair]]:
    """Take sequences for a pass of at most `budget` rows, a longer one alone; return the rest."""
    prefixes = PrefixBatch()
    for k, pair in enumerate(pairs):
        if k and prefixes.n_rows + prefixes.cost([pair]) > budget:
            return prefixes, pairs[k:]
        prefixes.add([pair])
    return prefixes, []
