"""cqa-fast with the paper's recipe on a data file: one optimizer step a turn."""

from pathlib import Path

import torch

from cqa.bench.peers.child import serve, settings
from cqa.model.load import load_model
from cqa.model.lora import TrainableLora
from cqa.train.config import TrainConfig
from cqa.train.loop import take_step
from cqa.train.plan import make_plan

plan = make_plan(
    TrainConfig(
        model=settings["model"], data=Path(settings["data"]), out=Path(settings["folder"]) / "run",
        validation="0",
    )
)  # fmt: skip
base = load_model(
    plan.folder, device=torch.device("cpu"), dtype=torch.float32,
    rank_columns=plan.spec.rank_columns(),
)  # fmt: skip
lora = TrainableLora(base.decoder, plan.spec, 0)
steps = iter(range(1, plan.total_steps + 1))
serve(lambda: take_step(plan, lora, next(steps))["loss_nats"])
