"""One optimizer step of cqa-fast over a given accumulation window."""

from __future__ import annotations

from itertools import count

from cqa.bench.peers.child import serve, settings
from cqa.bench.shapes import BenchModel, random_adapter
from cqa.bench.step import LEARNING_RATE
from cqa.data.samples import EncodedSample
from cqa.model.lora import TrainableLora
from cqa.train.passes import StepConfig
from cqa.train.step import take_step

bench_model = BenchModel.told(settings)
window = [
    EncodedSample(str(i), tuple(ids), tuple(loss_mask), slice(0, 0), "")
    for i, (ids, loss_mask) in enumerate(settings["window"])
]
lora = TrainableLora(bench_model.decoder(), bench_model.spec, 0)
for (layer, module), pair in lora.weights.items():
    shapes = (tuple(pair[0].shape), tuple(pair[1].shape))
    for ours, drawn in zip(
        pair, random_adapter(layer, module, shapes, lora.decoder.device), strict=True
    ):
        ours.copy_(drawn)
lora.after_step()
steps = count(1)


def step(dropout: float) -> list[float]:
    """Return the loss and the gradient's norm."""
    config = StepConfig(
        dropout=dropout, neftune_alpha=0.0, recompute=settings.get("recompute", False)
    )
    took = take_step(lora, window, config, step=next(steps), lr=LEARNING_RATE)
    return [took.loss_nats, took.grad_norm]


serve(step)
