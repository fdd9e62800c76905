"""What the adapters of a scale study score on its pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cqa.data.jsonl import held_columns
from cqa.model.load import BaseModel
from cqa.schema.comparison import Comparison
from cqa.schema.events import ScoreEvent
from cqa.score.adapters import find_adapters
from cqa.score.config import ScoreConfig
from cqa.score.run import score
from cqa.study.config import ScaleConfig
from cqa.study.scale_runs import Cell, adapter_of
from cqa.train.config import TrainConfig


def scoring_of(config: ScaleConfig, adapters: tuple[Path, ...]) -> ScoreConfig:
    """Return the scoring run of some adapters."""
    return ScoreConfig(
        model=config.model,
        out=config.out / "scores",
        adapter=adapters,
        pairs=config.pairs,
        columns=held_columns(config.pairs, config.columns),
        template=config.template,
        allow_special=config.allow_special,
        too_long="drop" if config.too_long == "drop" else "refuse",  # an item is never cut
        device=config.device,
        dtype=config.dtype,
    )


def score_runs(
    config: ScaleConfig,
    settings: Mapping[Cell, TrainConfig],
    base: BaseModel,
    on_event: Callable[[ScoreEvent], None],
) -> dict[Cell, dict[str, Comparison]]:
    """Score every run's adapter; return the summary's entry by run and group."""
    folders = {adapter_of(settings[cell], cell): cell for cell in settings}
    scoring = scoring_of(config, tuple(folders))
    summary = score(scoring, base=base, on_event=on_event).summary
    assert summary is not None  # the settings ask for it
    groups = summary.statistics.groups
    return {
        folders[found.folder]: {group: models[found.name] for group, models in groups.items()}
        for found in find_adapters(scoring)
    }
