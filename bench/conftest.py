"""What every result records of the machine, and the models that are measured."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Add versions and thread count to the stored JSON."""
    import torch

    del machine_info["node"], machine_info["release"]
    machine_info.update(
        {name: version(name) for name in ("torch", "transformers", "peft", "lm_eval", "numpy")},
        threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        processor=platform.processor() or platform.machine(),
    )


@pytest.fixture(scope="session")
def half_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model of the 0.5 B shape with random weights."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM

    from cqa.bench.shapes import hf_config

    folder = tmp_path_factory.mktemp("half_billion")
    (folder / "config.json").write_text(json.dumps(hf_config("qwen2.5-0.5b")))
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # as many tokens as the model has: lm-eval cuts the model's table to the tokenizer's length
    words = {f"t{i}": i for i in range(config.vocab_size)}
    Tokenizer(models.WordLevel(words, unk_token="t0")).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
