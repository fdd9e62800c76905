"""Where a scoring run computes: in this process, over several that torchrun started, or on Ray."""

from __future__ import annotations

from collections.abc import Callable

from cqa.config import command_line, given_settings
from cqa.errors import ConfigError
from cqa.interrupt import continued_by
from cqa.model.checkpoint import locate
from cqa.ranks import joined, launched, relaunched, require_several
from cqa.schema.events import ScoreEvent
from cqa.score.config import ScoreConfig
from cqa.score.on_ray import score_on_ray
from cqa.score.run import ScoreResult, score
from cqa.score.spread_engine import follow


def score_anywhere(
    config: ScoreConfig, *, on_event: Callable[[ScoreEvent], None] = lambda _: None
) -> ScoreResult | None:
    """Score items where the settings say; see `score`.

    Returns:
        What the run comes to; None on all ranks but the first.
    """
    count = launched()[1]
    if config.shard_base:
        require_several(count)
        return _score_spread(config, on_event)
    if count > 1:
        raise ConfigError(
            f"expected --shard-base where torchrun starts several processes, got {count} of them "
            "without",
            hint="to share the items between processes, give each its --shard i/K, or use --ray",
        )
    if config.ray is not None:
        return score_on_ray(config, on_event=on_event)
    return score(config, on_event=on_event)


def _score_spread(
    config: ScoreConfig, on_event: Callable[[ScoreEvent], None]
) -> ScoreResult | None:
    """Score with the base spread over the processes of torchrun, of which rank 0 writes."""
    again = relaunched(command_line(ScoreConfig, "score", given_settings(config)))
    with continued_by(again), joined(config.device, config.out, again) as ranks:
        if not ranks.leads:
            follow(locate(config.model), device=config.device, dtype=config.dtype, ranks=ranks)
            return None
        result = score(config, ranks=ranks, on_event=on_event)
        ranks.from_first(None)
        return result
