"""Our decoder over a base that is spread over processes: what rank 0 is asked, all of them do.

Rank 0 alone reads items and writes rows. The others follow: each takes what rank 0 sends, and does
its part of it. The sequences of a pass are dealt to the ranks by tokens, in their order; since a
sequence's score does not depend on what else is in its pass, the rows are those of one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cqa.interrupt import Interrupt
from cqa.model.adapter import read_adapter
from cqa.model.load import Device, Dtype
from cqa.ranks import Ranks, parts
from cqa.score.adapters import AdapterFolder, wider_for
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.engine import EngineIdentity, SequenceScores
from cqa.score.prefix_batch import PrefixBatch


class SpreadEngine:
    """The engine of rank 0; see `cqa.score.engine.Engine`."""

    def __init__(
        self,
        folder: Path,
        adapters: Sequence[AdapterFolder],
        *,
        device: Device,
        dtype: Dtype,
        ranks: Ranks,
    ) -> None:
        """Read the shapes of a model and its adapters; see `DecoderEngine`."""
        self._ranks = ranks
        self._own = DecoderEngine(folder, adapters, device=device, dtype=dtype, ranks=ranks)
        self.vocab_size, self.max_positions = self._own.vocab_size, self._own.max_positions

    @property
    def pass_rows(self) -> int:
        """What the decoders of all ranks take at a time."""
        return self._own.pass_rows * self._ranks.count

    @property
    def computes_elsewhere(self) -> bool:
        """Never taken so: what the ranks send each other keeps its order in one thread of each."""
        return False

    def open(self) -> EngineIdentity:
        """Load the base, each rank its part; see `Engine.open`."""
        opened: EngineIdentity = self._all("open", self._own.columns)
        return opened

    def make_room(self, adapter: AdapterFolder) -> None:
        """Load the base again where an adapter has more columns than there is room for."""
        columns = wider_for(adapter, self._own.columns)
        if columns is not None:
            self._all("open", columns)

    def use(self, adapter: AdapterFolder | None) -> None:
        """Send an adapter's tensors to all ranks; see `Engine.use`."""
        self._read(adapter)
        self._all("use", adapter)

    def use_silenced(self, adapter: AdapterFolder) -> None:
        """Score with an adapter whose B counts as zero; see `Engine.use_silenced`."""
        self._read(adapter)
        self._all("use_silenced", adapter)

    def _read(self, adapter: AdapterFolder | None) -> None:
        """Read an adapter, which is wrong here alone if it is, and need not be elsewhere."""
        if adapter is not None:
            adapter.kept = adapter.kept or read_adapter(adapter.folder, self._own.base.decoder)

    def run(self, prefixes: PrefixBatch) -> SequenceScores:
        """Score every sequence of a pass, on whichever rank."""
        scores: SequenceScores = self._all("run", prefixes)
        return scores

    def _all(self, name: str, *given: Any) -> Any:
        self._ranks.from_first((name, given))
        return self.do(name, *given)

    def do(self, name: str, *given: Any) -> Any:
        """Do this rank's part of what rank 0 was asked."""
        if name == "open":
            return self._open(*given)
        if name == "run":
            return self._run(*given)
        return getattr(self._own, name)(*given)

    def _open(self, columns: dict[str, int]) -> EngineIdentity:
        self._own.close()
        self._own.columns = columns
        identity = self._own.open()
        self._ranks.require_same("base model", identity.model)
        return identity

    def _run(self, prefixes: PrefixBatch) -> SequenceScores:
        """Score this rank's sequences; return those of all on rank 0."""
        dealt = deal(prefixes, self._ranks.count)
        ours = dealt[self._ranks.rank]
        scores = self._own.run(ours if ours.sequences else dealt[0])  # it takes part all the same
        everywhere = self._ranks.to_first(scores if ours.sequences else {})
        return {pair: stats for held in everywhere for pair, stats in held.items()}


def deal(prefixes: PrefixBatch, count: int) -> list[PrefixBatch]:
    """Cut the sequences of a pass into runs of about as many tokens; the last may be empty."""
    pairs, lengths = [], []
    for context, options in prefixes.sequences.items():
        for k, option in enumerate(options):
            pairs.append((context, option))
            lengths.append(len(option) + (0 if k else len(context)))
    dealt = [PrefixBatch() for _ in range(count)]
    for part, (first, end) in zip(dealt, parts(lengths, count), strict=True):
        part.add(pairs[first:end])
    return dealt


def follow(folder: Path, *, device: Device, dtype: Dtype, ranks: Ranks) -> None:
    """Do what rank 0 is asked until it ends; a signal is rank 0's to answer.

    Raises:
        CqaError: The base cannot be loaded or computed here, or a rank was lost.
    """
    engine = SpreadEngine(folder, (), device=device, dtype=dtype, ranks=ranks)
    with Interrupt():
        while True:
            asked: Any = ranks.from_first(None)
            if asked is None:
                return
            name, given = asked
            engine.do(name, *given)
