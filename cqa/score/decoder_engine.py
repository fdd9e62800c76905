"""Our own decoder as an engine: every context of a pass once, every text after it once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from cqa.model.adapter import read_adapter
from cqa.model.config import read_config
from cqa.model.decoder import Decoder
from cqa.model.load import BaseModel, Device, Dtype, dtype_name, open_model
from cqa.model.lora import attach, place
from cqa.model.memory import reported
from cqa.model.spread import HINT
from cqa.ranks import ALONE, Ranks
from cqa.score.adapters import AdapterFolder, columns_of, wider_for
from cqa.score.engine import EngineIdentity, SequenceScores, SequenceStats
from cqa.score.prefix_batch import PrefixBatch


@torch.no_grad()
def run_prefix_batch(
    decoder: Decoder, prefixes: PrefixBatch, *, varentropy: bool = False
) -> SequenceScores:
    """Score every sequence of a prefix batch in one pass; none depends on what else is in it.

    With `varentropy`, that of every option token too; the other numbers keep their bits.
    """
    trees, batch, places = prefixes.packed()
    batch = batch.to(decoder.device)
    whole = nullcontext() if decoder.spread is None else reported("a pass", HINT)  # never in parts
    with whole:
        hidden = decoder.hidden_for_scoring(batch)
        stats = decoder.token_stats(hidden, batch.target, varentropy=varentropy)
    fields = (stats.logp, stats.entropy, stats.rank, stats.varentropy)
    lists = [field.tolist() for field in fields if field is not None]
    return {
        (tree.context, option): SequenceStats(*(values[place] for values in lists))
        for tree, slices in zip(trees, places, strict=True)
        for option, place in zip(tree.options, slices, strict=True)
    }


class DecoderEngine:
    """A base model in our decoder, adapters swapped in place."""

    def __init__(
        self,
        folder: Path,
        adapters: Sequence[AdapterFolder],
        *,
        device: Device,
        dtype: Dtype,
        base: BaseModel | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Read the shapes of a model and its adapters.

        Args:
            folder: The base model.
            adapters: What `use` will be asked for.
            device: Where to compute.
            dtype: Dtype of the weights.
            base: The model if it is loaded already, with room for every adapter; its device and
                dtype then count.
            ranks: The processes over which it is to be spread.
        """
        shape = read_config(folder)
        self.vocab_size, self.max_positions = shape.vocab_size, shape.max_positions
        self.columns = columns_of(adapters)
        self._ranks = ranks
        self._folder, self._device, self._dtype, self._base = folder, device, dtype, base

    @property
    def base(self) -> BaseModel:
        """The model, once it is open."""
        assert self._base is not None
        return self._base

    @property
    def pass_rows(self) -> int:
        """What the decoder takes at a time."""
        return self.base.decoder.pass_rows

    @property
    def computes_elsewhere(self) -> bool:
        """Whether it computes on a GPU, so that threads of the processor have nothing to do."""
        return self.base.decoder.device.type != "cpu"

    def open(self) -> EngineIdentity:
        """Load the base, with room for the widest of the adapters; see `Engine.open`."""
        if self._base is None:
            self._base = open_model(
                self._folder, self._device, self._dtype, rank_columns=self.columns,
                ranks=self._ranks,
            )  # fmt: skip
        return decoder_identity(self._base)

    def close(self) -> None:
        """Let the base go: its memory is what the next one takes."""
        self._base = None

    def make_room(self, adapter: AdapterFolder) -> None:
        """Load the base again where an adapter has more columns than there is room for."""
        columns = wider_for(adapter, self.base.decoder.rank_columns)
        if columns is not None:
            self.close()
            self.columns = columns
            self.open()

    def use(self, adapter: AdapterFolder | None) -> None:
        """Write an adapter's tensors into the weights; see `Engine.use`."""
        decoder = self.base.decoder
        decoder.detach_adapter()
        if adapter is not None:
            adapter.kept = adapter.kept or place(decoder, read_adapter(adapter.folder, decoder))
            attach(decoder, adapter.kept)

    def use_silenced(self, adapter: AdapterFolder) -> None:
        """Score with an adapter whose B counts as zero; see `Engine.use_silenced`."""
        self.use(adapter)
        self.base.decoder.silence_adapter()

    def run(self, prefixes: PrefixBatch) -> SequenceScores:
        """Score every sequence of a pass; see `run_prefix_batch`."""
        return run_prefix_batch(self.base.decoder, prefixes)


def decoder_identity(base: BaseModel) -> EngineIdentity:
    """Return what of a base in our decoder decides a score's digits."""
    return EngineIdentity(
        engine="cqa",
        model=base.digest,
        device=base.decoder.device.type,
        dtype=dtype_name(base.decoder.dtype),
        backend=base.decoder.backend,
        batch_invariant=True,
    )
