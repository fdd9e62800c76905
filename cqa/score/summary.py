"""summary.json from the rows of a folder of scores, and the digest that ties it to meta.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cqa.config import describe
from cqa.family import read_family
from cqa.files import inside, write_json
from cqa.schema.meta import ScoredModel
from cqa.schema.summary import ScoreSummary
from cqa.score_folder import SUMMARY, digest_json
from cqa.stats.config import AnalysisConfig
from cqa.stats.summary import Scores, summarise


def write_summary(out: Path, config: AnalysisConfig) -> ScoreSummary:
    """Read the rows of a folder's family again; write and return their statistics."""
    family = read_family(out)
    scores = Scores(family.rows(), family.items.copies, family.order)
    summary = ScoreSummary(
        statistics=summarise(scores, config, made=family.made),
        digest=family.meta.digest,
        items_digest=family.meta.items_digest,
        n_too_long=dict(Counter(family.meta.too_long.values())),
        n_unscored=dict(Counter(why.group for why in family.meta.unscored.values())),
        n_rejected=family.meta.n_rejected,
        model_keys={name or "base": key for name, key in family.keys.items()},
        not_in_family=family.not_in_family,
    )
    write_json(inside(out, SUMMARY), summary.to_json())
    return summary


def statistics_digest(
    settings: Mapping[str, Any], items_digest: str, models: Sequence[ScoredModel]
) -> str:
    """Return the digest of what the statistics follow from, as meta.json and summary.json have it.

    Args:
        settings: As `describe` returns them; those of the statistics count.
        items_digest: Of the items that are scored.
        models: The base and the adapters.
    """
    of_statistics = {key: settings[key] for key in describe(AnalysisConfig())}
    return digest_json([of_statistics, items_digest, [model.model_key for model in models]])
