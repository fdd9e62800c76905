"""The same step with transformers and PEFT, with Liger's kernels where told so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cqa.bench.peers.child import settings
from cqa.bench.peers.gradient_steps import serve_steps
from cqa.bench.shapes import BenchModel

bench_model = BenchModel.told(settings)
liger = settings.get("liger", False)
if liger:  # patches transformers' classes, so before a model is made
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2

    apply_liger_kernel_to_qwen2()

from cqa.bench.peers.hugging_face import adapted_model, widened  # noqa: E402


def loss_of(model: Any, ids: Tensor, labels: Tensor, n_labels: int) -> Tensor:
    """Return a sample's part of the window's mean loss."""
    with torch.autocast(
        bench_model.device, bench_model.dtype, enabled=bench_model.dtype.itemsize == 2
    ):
        if liger:  # its fused loss is part of the model's forward
            loss: Tensor = model(
                ids, labels=labels, num_items_in_batch=n_labels, use_cache=False
            ).loss
            return loss
        logits = widened(model(ids, use_cache=False).logits[0, :-1])
    summed = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
    return summed / n_labels


serve_steps(adapted_model(bench_model, recompute=settings.get("recompute", False)), loss_of)
