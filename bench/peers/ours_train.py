"""One optimizer step of cqa-fast over a given accumulation window."""

from pathlib import Path
from types import SimpleNamespace

import torch
from child import serve, settings

from cqa.data.samples import EncodedSample
from cqa.model.load import load_model
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.model.projection import MODULES
from cqa.train.config import TrainConfig
from cqa.train.loop import take_step

window = [
    EncodedSample(str(i), tuple(ids), torch.tensor(learned).tolist(), slice(0, 0), "")
    for i, (ids, learned) in enumerate(settings["window"])
]
spec = LoraSpec(32, 32.0, True, MODULES)
base = load_model(
    Path(settings["model"]), device=torch.device("cpu"), dtype=torch.float32,
    rank_columns=spec.rank_columns(), backend=settings.get("backend"),
)  # fmt: skip
lora = TrainableLora(base.decoder, spec, 0)
steps = iter(range(1, 10**6))


def turn(dropout: float) -> float:
    """Return the loss."""
    config = TrainConfig(model="", data=None, out=None, dropout=dropout, neftune_alpha=0.0)
    plan = SimpleNamespace(
        config=config, window=lambda _: window, learning_rate=lambda _: 1e-5, epoch_of=lambda _: 1
    )
    return take_step(plan, lora, next(steps))["loss_nats"]


serve(turn)
