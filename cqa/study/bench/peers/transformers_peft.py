"""The same step with transformers and PEFT: one sample at a time, gradients accumulated."""

from __future__ import annotations

import torch

from cqa.study.bench.peers.child import serve, settings
from cqa.study.bench.shapes import Subject

subject = Subject.told(settings)
liger = settings.get("liger", False)
if liger:  # patches transformers' classes, so before a model is made
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2

    apply_liger_kernel_to_qwen2()

from cqa.study.bench.peers.hugging_face import adapted_model  # noqa: E402

model = adapted_model(subject, recompute=settings.get("recompute", False))
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=subject.device == "cuda")
window = [
    (
        torch.tensor([ids], device=subject.device),
        torch.tensor([learned], device=subject.device).bool(),
    )
    for ids, learned in settings["window"]
]
n_labels = sum(int(learned[0, 1:].sum()) for _, learned in window)


def turn(dropout: float) -> list[float]:
    """Return the loss and the gradient's norm; dropout is on, at the recipe's 0.05, or off."""
    model.train(dropout > 0)
    total = torch.zeros((), device=subject.device)
    for ids, learned in window:
        loss = loss_of(ids, learned)
        loss.backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return [float(total), float(norm)]


def loss_of(ids: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Return a sample's part of the window's mean loss."""
    labels = ids.masked_fill(~learned, -100)
    with torch.autocast(subject.device, subject.dtype, enabled=subject.dtype != torch.float32):
        if liger:  # its fused loss is part of the model's forward
            loss: torch.Tensor = model(
                ids, labels=labels, num_items_in_batch=n_labels, use_cache=False
            ).loss
            return loss
        logits = model(ids, use_cache=False).logits[0, :-1].float()
    summed = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
    return summed / n_labels


serve(turn)
