"""One optimizer step of cqa-fast over a given accumulation window."""

from __future__ import annotations

from cqa.bench.peers.child import serve, settings
from cqa.bench.shapes import Subject, random_adapter
from cqa.bench.step import random_plan
from cqa.data.samples import EncodedSample
from cqa.model.lora import TrainableLora
from cqa.train.loop import take_step

subject = Subject.told(settings)
window = [
    EncodedSample(str(i), tuple(ids), tuple(learned), slice(0, 0), "")
    for i, (ids, learned) in enumerate(settings["window"])
]
lora = TrainableLora(subject.decoder(), subject.spec, 0)
for (layer, module), pair in lora.weights.items():
    shapes = (tuple(pair[0].shape), tuple(pair[1].shape))
    for ours, drawn in zip(
        pair, random_adapter(layer, module, shapes, lora.decoder.device), strict=True
    ):
        ours.copy_(drawn)
lora.after_step()
steps = iter(range(1, 10**6))


def turn(dropout: float) -> list[float]:
    """Return the loss and the gradient's norm."""
    plan = random_plan(
        window, dropout=dropout, neftune_alpha=0.0, recompute=settings.get("recompute", False)
    )
    event = take_step(plan, lora, next(steps))
    return [event["loss_nats"], event["grad_norm"]]


serve(turn)
