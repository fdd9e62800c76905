"""The same model in transformers, with PEFT's adapter: the other side of most comparisons."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from cqa.bench.shapes import BenchModel, hf_config, random_adapter, random_weight
from cqa.model.checkpoint import locate


def base_model(bench_model: BenchModel) -> Any:
    """Return the base on the model's device, every weight that of our decoder."""
    device = bench_model.torch_device
    if bench_model.model is not None:
        folder = locate(bench_model.model)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=bench_model.dtype).to(device)
    raw = hf_config(bench_model.shape)
    config = AutoConfig.for_model(**raw)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=bench_model.dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shape = tuple(parameter.shape)
            parameter.copy_(random_weight(name, shape, bench_model.dtype, device))
    return model


def widened(logits: Tensor) -> Tensor:
    """Return logits in fp32, or in float64 where the model computes in it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def adapted_model(bench_model: BenchModel, *, recompute: bool) -> Any:
    """Return the base with a PEFT adapter whose weights are ours."""
    model = base_model(bench_model)
    spec = bench_model.spec
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = get_peft_model(
        model,
        LoraConfig(
            r=spec.rank, lora_alpha=spec.alpha, use_rslora=spec.rslora, lora_dropout=0.05,
            target_modules=[f"{name}_proj" for name in spec.targets],
        ),
    )  # fmt: skip
    fill_adapter(model, bench_model.torch_device)
    return model


def fill_adapter(model: Any, device: torch.device) -> None:
    """Give a PEFT model the adapter weights that ours draws."""
    with torch.no_grad():
        for name, layer in model.named_modules():
            if not hasattr(layer, "lora_A") or "default" not in layer.lora_A:
                continue
            parts = name.split(".")
            number = int(parts[parts.index("layers") + 1])
            pair = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
            shapes = (tuple(pair[0].shape), tuple(pair[1].shape))
            module = parts[-1].removesuffix("_proj")
            drawn = random_adapter(number, module, shapes, device)
            for theirs, ours in zip(pair, drawn, strict=True):
                theirs.copy_(ours)
