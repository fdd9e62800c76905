"""Engines by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cqa.model.load import BaseModel, Device, Dtype
from cqa.ranks import ALONE, Ranks
from cqa.score.adapters import AdapterFolder
from cqa.score.config import EngineName, ScoreConfig
from cqa.score.decoder_engine import DecoderEngine
from cqa.score.engine import Engine
from cqa.score.server_engine import ServerEngine
from cqa.score.spread_engine import SpreadEngine
from cqa.score.transformers_engine import TransformersEngine


def engine_of(
    config: ScoreConfig,
    folder: Path,
    adapters: Sequence[AdapterFolder],
    base: BaseModel | None = None,
    ranks: Ranks = ALONE,
    *,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Engine:
    """Return the engine that the settings of a scoring run name; a server has been probed.

    Args:
        config: The settings.
        folder: The base model.
        adapters: What it will be asked to use.
        base: The base if it is loaded already.
        ranks: The processes that share the base's weights.
        on_wait: Told what is waited for, where a server does not answer at once.

    Raises:
        ModelError: The model is not one that the engine computes, or a probe of the server failed.
        ResourceError: The server does not answer.
    """
    if config.at_server is not None:
        return ServerEngine(
            folder,
            config.at_server,
            null_token=config.null_token,
            out=config.out,
            on_wait=on_wait,
        )
    if ranks.count > 1:
        return SpreadEngine(folder, adapters, device=config.device, dtype=config.dtype, ranks=ranks)
    return make_engine(
        config.engine, folder, adapters, device=config.device, dtype=config.dtype, base=base
    )


def make_engine(
    name: EngineName,
    folder: Path,
    adapters: Sequence[AdapterFolder],
    *,
    device: Device,
    dtype: Dtype,
    base: BaseModel | None = None,
) -> Engine:
    """Return an engine that is not open yet.

    Args:
        name: Which one.
        folder: The base model.
        adapters: What it will be asked to use.
        device: Where to compute.
        dtype: Dtype of the weights.
        base: The base if it is loaded already, in our decoder.

    Raises:
        ModelError: The model is not one that the engine computes.
    """
    if name == "transformers":
        return TransformersEngine(folder, device=device, dtype=dtype)
    return DecoderEngine(folder, adapters, device=device, dtype=dtype, base=base)
