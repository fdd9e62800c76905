"""The same step with Unsloth, which loads from a folder and patches transformers on import."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from unsloth import FastLanguageModel

from cqa.bench.peers.child import settings
from cqa.bench.peers.gradient_steps import serve_steps
from cqa.bench.peers.hugging_face import fill_adapter
from cqa.bench.shapes import BenchModel

bench_model = BenchModel.told(settings)
spec = bench_model.spec
longest = max(len(ids) for ids, _ in settings["window"])
model, _ = FastLanguageModel.from_pretrained(
    settings["folder"], max_seq_length=longest, dtype=bench_model.dtype, load_in_4bit=False
)
model = FastLanguageModel.get_peft_model(
    model, r=spec.rank, lora_alpha=spec.alpha, use_rslora=spec.rslora, lora_dropout=0.05,
    target_modules=[f"{name}_proj" for name in spec.targets], bias="none",
)  # fmt: skip
fill_adapter(model, bench_model.torch_device)


def loss_of(model: Any, ids: Tensor, labels: Tensor, n_labels: int) -> Tensor:
    """Return a sample's part of the window's mean loss."""
    loss: Tensor = model(ids, labels=labels, num_items_in_batch=n_labels).loss
    return loss


serve_steps(model, loss_of)
