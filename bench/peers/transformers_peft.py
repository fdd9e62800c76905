"""The same step with transformers and PEFT: one sample at a time, gradients accumulated."""

import torch
from child import serve, settings
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

names = ["q", "k", "v", "o", "gate", "up", "down"]
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32),
    LoraConfig(
        r=32, lora_alpha=32, use_rslora=True, lora_dropout=0.05,
        target_modules=[f"{name}_proj" for name in names],
    ),
)  # fmt: skip
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
window = [
    (torch.tensor([ids]), torch.tensor([learned]).bool()) for ids, learned in settings["window"]
]
n_labels = sum(int(learned[0, 1:].sum()) for _, learned in window)


def turn(dropout: float) -> float:
    """Return the loss; PEFT's dropout is either on, at the recipe's 0.05, or off."""
    model.train(dropout > 0)
    total = 0.0
    for ids, learned in window:
        logits = model(ids, use_cache=False).logits[0, :-1].float()
        labels = ids.masked_fill(~learned, -100)[0, 1:]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / n_labels
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


serve(turn)
