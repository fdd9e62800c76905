"""What several test files need: sample folders, tiny checkpoints, and the accuracy rule."""

import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "cqa" / "assets" / "demo"
# real data and models by others, beside the project or in it; not part of it
SHARED = next((p for p in (ROOT.parent / "shared", ROOT / "shared") if p.exists()), ROOT.parent)
ON_DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def shared(name: str) -> Path:
    """Return a file or folder of the real data, or skip the test."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real data not available: {name}")
    return path


def write_lines(path: Path, records: list[dict]) -> Path:
    """Write records as JSON Lines."""
    path.write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8"
    )
    return path


def read_lines(path: Path) -> list[dict]:
    """Read JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


TINY = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 211,
    "max_position_embeddings": 256,
}


def tiny_checkpoint(
    folder: Path, architecture: str, *, max_shard_size: str = "5GB", **changes
) -> Path:
    """Write a random checkpoint of an architecture in Hugging Face format."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**TINY, **changes}
    config = AutoConfig.for_model(architecture, **settings)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # wide enough that logits are far from uniform, norms and biases not 1, 0
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def tiny_model(folder: Path) -> Path:
    """Write a random one-layer model with a tokenizer of its own: loaded in milliseconds."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the lamp was lit and she waited by the door"] * 9, trainer)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 304}
    tiny_checkpoint(folder, "qwen2", **sizes, **heads)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tiny_run(folder: Path) -> Path:
    """Write a tiny model, and an adapter trained on it for two epochs, into `model` and `run`."""
    from cqa.train.config import TrainConfig
    from cqa.train.loop import train

    model = tiny_model(folder / "model")
    samples = [{"prompt": "the lamp", "response": " was lit"}, {"prompt": "she", "response": " r"}]
    data = write_lines(folder / "train.jsonl", samples)
    train(
        TrainConfig(
            model=str(model), data=(data,), out=folder / "run", epochs=2, rank=2, lr=3e-2,
            warmup_ratio=0.0, validation="0", device="cpu", grad_accum=1,
        )
    )  # fmt: skip
    return folder


def assert_as_accurate(name, actual, naive, truth, *, factor=2.0):
    """Allow `actual` `factor` times the error of plain PyTorch in the same dtype, plus rounding.

    Both errors are of a few roundings, and which ones depends on the processor's vectors.
    """
    floor = 6 * torch.finfo(actual.dtype).eps * truth.abs().max().item()
    naive_error = (naive.double() - truth).abs().max().item()
    error = (actual.double() - truth).abs().max().item()  # NaN fails the comparison below
    allowed = factor * naive_error + floor
    assert error <= allowed, f"{name}: max error {error:.2e}, allowed {allowed:.2e}"
