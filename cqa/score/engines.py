"""Which engine the settings of a scoring run name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cqa.model.load import BaseModel
from cqa.score.adapters import AdapterFolder
from cqa.score.config import ScoreConfig
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.engine import Engine
from cqa.score.transformers_engine import TransformersEngine


def make_engine(
    config: ScoreConfig,
    folder: Path,
    adapters: Sequence[AdapterFolder],
    base: BaseModel | None = None,
) -> Engine:
    """Return an engine that is not open yet.

    Args:
        config: The settings.
        folder: The base model.
        adapters: What it will be asked to use.
        base: The base if it is loaded already, in our decoder.

    Raises:
        ModelError: The model is not one that the engine computes.
    """
    if config.engine == "transformers":
        return TransformersEngine(folder, device=config.device, dtype=config.dtype)
    return DecoderEngine(folder, adapters, device=config.device, dtype=config.dtype, base=base)
