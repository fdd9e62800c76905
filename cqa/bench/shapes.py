"""The models that are measured: real sizes with random weights, drawn where they are needed.

A weight is a function of its name, so two programs hold the same model without a file between them.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cqa.assets import DEMO
from cqa.bench.config import BenchConfig, Job, Window
from cqa.errors import ConfigError
from cqa.kernels.backend import Backend
from cqa.model.checkpoint import locate
from cqa.model.config import DecoderConfig, parse_config, read_config
from cqa.model.decoder import Decoder
from cqa.model.load import destinations, load_model
from cqa.model.lora import LoraSpec
from cqa.model.projection import MODULES
from cqa.train.config import TrainConfig

QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
}
CONFIGS: dict[str, dict[str, Any]] = {  # as the published config.json have them
    "qwen2.5-7b": QWEN25
    | {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "qwen2.5-0.5b": QWEN25
    | {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
PAPER = ("0+700,0+700", "1884+112,1884+112")  # without and with the story, Qwen's tokens
SCORING = ("40x800+2x100*8", "4x4096+2x100", "10x800+4x100", "2000x20+2x10", "1x1+1x8192")
SMALL = ("368+110,320+100",), ("8x200+2x40*2", "4x200+4x40")  # for seconds on a CPU


def hf_config(shape: str) -> dict[str, Any]:
    """Return a shape's config.json."""
    if shape == "demo":
        raw: dict[str, Any] = json.loads((DEMO / "model" / "config.json").read_text("utf-8"))
        return raw
    return CONFIGS[shape]


def workload(config: BenchConfig, device: torch.device) -> tuple[list[Window], list[Job]]:
    """Return the windows and scoring jobs of a benchmark: those asked for, or the shape's own."""
    large = config.model is None and config.shape != "demo" and device.type == "cuda"
    windows, jobs = (PAPER, SCORING) if large else SMALL
    return [Window.parse(text) for text in config.window or windows], [
        Job.parse(text) for text in config.job or jobs
    ]


@dataclass(frozen=True, slots=True)
class BenchModel:
    """The model under test, as it can be told to another process."""

    shape: str
    model: str | None
    rank: int
    device: str
    dtype: torch.dtype
    backend: Backend | None = None

    @property
    def spec(self) -> LoraSpec:
        """The adapter: the paper's, but for its rank."""
        return LoraSpec(self.rank, 32.0, True, MODULES)

    @property
    def torch_device(self) -> torch.device:
        """Where it lies."""
        return torch.device(self.device)

    @property
    def config(self) -> DecoderConfig:
        """The model's sizes."""
        if self.model is not None:
            return read_config(locate(self.model))
        return parse_config(hf_config(self.shape), self.shape)

    def decoder(self, config: DecoderConfig | None = None) -> Decoder:
        """Return the decoder with its weights; another `config` gives random ones in its sizes."""
        columns, device = self.spec.rank_columns(), self.torch_device
        if self.model is not None and config is None:
            return load_model(
                locate(self.model),
                device=device,
                dtype=self.dtype,
                rank_columns=columns,
                backend=self.backend,
            ).decoder
        decoder = Decoder(
            config or self.config,
            rank_columns=columns, dtype=self.dtype, device=device, backend=self.backend,
        )  # fmt: skip
        for name, (sizes, put) in destinations(decoder).items():
            put(random_weight(name, sizes, self.dtype, device))
        return decoder

    def settings(self) -> dict[str, Any]:
        """Return what a peer's process is told."""
        dtype = str(self.dtype).removeprefix("torch.")
        names = ("shape", "model", "rank", "device", "backend")
        return {name: getattr(self, name) for name in names} | {"dtype": dtype}

    @classmethod
    def told(cls, settings: dict[str, Any]) -> BenchModel:
        """Return the model that a process was told of."""
        names = ("shape", "model", "rank", "device", "backend")
        return cls(
            **{name: settings[name] for name in names}, dtype=getattr(torch, settings["dtype"])
        )


def folder_settings(model: Path | str, **more: Any) -> dict[str, Any]:
    """Return what peers are told of a checkpoint: on the CPU, fp32, the recipe's rank."""
    bench_model = BenchModel("", str(model), TrainConfig.rank, "cpu", torch.float32)
    return bench_model.settings() | more


def random_weight(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draw the weight of a name: the same bits on every device of one kind."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    drawn = torch.float32 if dtype == torch.float64 else dtype  # the same numbers, held wider
    weight = torch.empty(shape, dtype=drawn, device=device)
    if name.endswith("norm.weight"):
        return weight.uniform_(0.9, 1.1, generator=generator).to(dtype)
    return weight.normal_(0, 0.02, generator=generator).to(dtype)


def random_adapter(
    layer: int,
    module: str,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    device: torch.device,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draw A and B of a module, fp32: small enough to change the model by a little."""
    a, b = (
        random_weight(f"{seed}.{layer}.{module}.{part}", shape, torch.float32, device)
        for part, shape in zip("AB", shapes, strict=True)
    )
    return a, b.mul_(0.05)


def check_fits(config: DecoderConfig, windows: list[Window], jobs: list[Job]) -> None:
    """Refuse texts that are longer than the model has positions.

    Raises:
        ConfigError: One is.
    """
    longest = [sum(sample) for window in windows for sample in window.samples]
    longest += [job.context + job.option for job in jobs]
    if max(longest) > config.max_positions:
        raise ConfigError(
            f"expected at most {config.max_positions} tokens a text, got: {max(longest)}",
            hint="shorter --window and --job, or another --shape",
        )
