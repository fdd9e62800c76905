"""What every result records of the machine."""

import os
import platform
from importlib.metadata import version

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Add versions and thread count to the stored JSON."""
    import torch

    machine_info.update(
        {name: version(name) for name in ("torch", "transformers", "peft", "numpy")},
        threads=torch.get_num_threads(),
        processor=platform.processor() or platform.machine(),
    )
