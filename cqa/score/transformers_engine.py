"""transformers as an engine: any causal language model, a text at a time, adapters through PEFT.

Slower than our decoder, which computes a context once for all that follows it. Weights in bf16 give
logits in bf16, as transformers rounds them. Scores are not promised to be the same to the last bit
in another pass or process.
"""

from __future__ import annotations

from pathlib import Path

import torch

from cqa.data.tokenizer import Ids
from cqa.identity import version
from cqa.kernels.logit_stats import logit_stats_ref
from cqa.model.block_rows import PASS_ROWS
from cqa.model.hugging_face import HuggingFaceModel
from cqa.model.load import Device, Dtype, dtype_name, pick_device, pick_dtype
from cqa.score.adapters import AdapterFolder
from cqa.score.engine import EngineIdentity, SequenceScores, SequenceStats
from cqa.score.prefix_batch import PrefixBatch


class TransformersEngine:
    """A base model in transformers; see `cqa.score.engine.Engine`."""

    def __init__(self, folder: Path, *, device: Device, dtype: Dtype) -> None:
        """Read the model's config."""
        self._model = HuggingFaceModel(folder)
        self.vocab_size = self._model.vocab_size
        self.pass_rows = PASS_ROWS
        self.computes_elsewhere = False  # many small calls, each waited for
        self.max_positions = self._model.max_positions
        self._device, self._dtype = device, dtype

    def open(self) -> EngineIdentity:
        """Load the base; see `Engine.open`."""
        device = pick_device(self._device)
        dtype = pick_dtype(self._dtype, device)
        self._model.open(device, dtype)
        return EngineIdentity(
            engine="transformers",
            model=self._model.digest,
            device=device.type,
            dtype=dtype_name(dtype),
            backend=f"transformers {version('transformers')}, peft {version('peft')}",
            batch_invariant=False,
        )

    def make_room(self, adapter: AdapterFolder) -> None:
        """Do nothing: PEFT makes room for an adapter when it is used."""

    def use(self, adapter: AdapterFolder | None) -> None:
        """Score with an adapter from here on; see `Engine.use`."""
        self._model.use(adapter.folder if adapter else None)

    def use_silenced(self, adapter: AdapterFolder) -> None:
        """Score with the base, whose sums PEFT leaves as they are."""
        self._model.use(None)

    def run(self, prefixes: PrefixBatch) -> SequenceScores:
        """Score every sequence of a pass, one after the other."""
        return {
            (context, option): self._stats(context, option)
            for context, options in prefixes.sequences.items()
            for option in options
        }

    def _stats(self, context: Ids, option: Ids) -> SequenceStats:
        logits = self._model.logits((*context, *option), len(option)).double()
        target = torch.tensor(option, device=logits.device)
        own = logits.gather(1, target[:, None]).squeeze(1)
        stats = logit_stats_ref(logits, target, own)
        return SequenceStats(stats.logp.tolist(), stats.entropy.tolist(), stats.rank.tolist())
