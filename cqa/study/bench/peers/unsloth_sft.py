"""The same step with Unsloth, which loads from a folder and patches transformers on import."""

from __future__ import annotations

import torch
from unsloth import FastLanguageModel

from cqa.study.bench.peers.child import serve, settings
from cqa.study.bench.peers.hugging_face import fill_adapter
from cqa.study.bench.shapes import Subject

subject = Subject.told(settings)
spec = subject.spec
longest = max(len(ids) for ids, _ in settings["window"])
model, _ = FastLanguageModel.from_pretrained(
    settings["folder"], max_seq_length=longest, dtype=subject.dtype, load_in_4bit=False
)
model = FastLanguageModel.get_peft_model(
    model, r=spec.rank, lora_alpha=spec.alpha, use_rslora=spec.rslora, lora_dropout=0.05,
    target_modules=[f"{name}_proj" for name in spec.targets], bias="none",
)  # fmt: skip
fill_adapter(model, subject.torch_device)
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
window = [
    (torch.tensor([ids], device="cuda"), torch.tensor([learned], device="cuda").bool())
    for ids, learned in settings["window"]
]
n_labels = sum(int(learned[0, 1:].sum()) for _, learned in window)


def turn(dropout: float) -> list[float]:
    """Return the loss and the gradient's norm; dropout is on, at the recipe's 0.05, or off."""
    model.train(dropout > 0)
    total = torch.zeros((), device="cuda")
    for ids, learned in window:
        labels = ids.masked_fill(~learned, -100)
        loss = model(ids, labels=labels, num_items_in_batch=n_labels).loss
        loss.backward()
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return [float(total), float(norm)]


serve(turn)
