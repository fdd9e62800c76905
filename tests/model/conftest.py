"""Small checkpoints, and one to spoil."""

import shutil
from pathlib import Path

import pytest
from helpers import tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        name: tiny_checkpoint(folder / name, name, num_hidden_layers=1)
        for name in ("qwen2", "llama", "mistral", "qwen3")
    }


@pytest.fixture
def model(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A sound one-layer Llama to spoil."""
    return Path(shutil.copytree(checkpoints["llama"], tmp_path / "model"))
