"""What decides a score's digits, and the key that stands for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Self

from cqa.data.tokenizer import Boundary, Ids, Tokenizer
from cqa.identity import code_digest
from cqa.model.origin import read_origin
from cqa.schema.meta import ScoredModel
from cqa.score.adapters import AdapterFolder
from cqa.score.engine import EngineIdentity
from cqa.score_folder import digest_json

CODE = (
    "data/items.py", "score/prefix_batch.py", "score/other_contexts.py", "score/scorer.py",
    "score/engine.py",
    "score/decoder_engine.py", "score/transformers_engine.py", "score/server_engine.py",
    "server/completions.py", "stats/information.py",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Everything but the adapter that decides a score's digits; see `ScoredModel`."""

    tokenizer: str
    template: str | None
    boundary: Boundary
    null_ids: Ids
    null2_ids: Ids | None
    null2_digest: str | None
    score_eos: bool
    code: str
    engine: str
    model: str
    device: str
    dtype: str
    backend: str
    batch_invariant: bool

    @classmethod
    def of(
        cls,
        engine: EngineIdentity,
        tokenizer: Tokenizer,
        *,
        boundary: Boundary,
        score_eos: bool,
        null2_digest: str | None = None,
    ) -> Self:
        """Take an open engine and a tokenizer together; see `OtherContexts` for the last."""
        return cls(
            tokenizer=tokenizer.digest,
            template=tokenizer.chat_template,
            boundary=boundary,
            null_ids=tokenizer.null_ids,
            null2_ids=tokenizer.null2_ids,
            null2_digest=null2_digest,
            score_eos=score_eos,
            code=code_digest(*CODE),
            **asdict(engine),
        )

    def model_of(self, adapter: AdapterFolder | None, digest: str | None) -> ScoredModel:
        """Return what identifies the base (None) or an adapter of a digest, its key included."""
        identity = {**asdict(self), "adapter_digest": digest}
        return ScoredModel(
            model_key=digest_json(identity),
            adapter=adapter.name if adapter else None,
            adapter_origin=read_origin(adapter.folder) if adapter else None,
            **identity,
        )
