"""What an adapter must be before it is scored: another than the rest, of this base, with effect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cqa.data.tokenizer import Ids, Tokenizer
from cqa.errors import ModelError
from cqa.model.adapter import read_adapter
from cqa.model.adapter_files import CONFIG, WEIGHTS
from cqa.model.checkpoint import digest_files
from cqa.model.decoder import Decoder
from cqa.model.lora import attach
from cqa.score.prefix_batch import EncodedItem
from cqa.score.scorer import BranchStats, scored_passes

Branches = dict[tuple[Ids, Ids], BranchStats]


def adapter_digest(folder: Path) -> str:
    """Return a sha256 over what an adapter is: its config and its weights."""
    return digest_files([folder / CONFIG, folder / WEIGHTS])


def check_distinct(folders: Sequence[Path], digests: Sequence[str]) -> None:
    """Check that no two folders hold the same adapter, whose rows would stand under one name.

    Raises:
        ModelError: Two adapters have the same bytes.
    """
    first: dict[str, Path] = {}
    for folder, digest in zip(folders, digests, strict=True):
        if digest in first:
            raise ModelError(
                f"expected each adapter once, got the same bytes as in {first[digest]}",
                where=str(folder),
            )
        first[digest] = folder


def check_has_effect(
    folder: Path, decoder: Decoder, items: Iterable[EncodedItem], tokenizer: Tokenizer
) -> None:
    """Check that an adapter changes a score: one that is not the base's is enough.

    Leaves the decoder with the adapter attached.

    Raises:
        ModelError: max |ΔS| over all items is 0.
    """
    adapter = read_adapter(folder, decoder)

    def scored(item: EncodedItem) -> Branches:
        ((_, branches, _),) = scored_passes(decoder, [item], tokenizer, 1)
        return branches

    for item in items:
        decoder.detach_adapter()
        before = scored(item)
        attach(decoder, adapter)
        after = scored(item)
        if any(after[branch].logp != before[branch].logp for branch in before):
            return
    raise ModelError(
        "expected an adapter that changes a score, got one under which all are the base's",
        where=str(folder),
        hint="its B·A may be zero or below the rounding of the weights' dtype",
    )
