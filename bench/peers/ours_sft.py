"""cqa-fast with the paper's recipe on a data file: one optimizer step a call."""

from pathlib import Path

import torch

from cqa.bench.peers.child import serve, settings
from cqa.model.load import load_model
from cqa.model.lora import TrainableLora
from cqa.train.config import TrainConfig
from cqa.train.passes import StepConfig
from cqa.train.plan import make_plan
from cqa.train.step import take_step

plan = make_plan(
    TrainConfig(
        model=settings["model"], data=(Path(settings["data"]),),
        out=Path(settings["folder"]) / "run", validation="0",
    )
)  # fmt: skip
base = load_model(
    plan.folder, device=torch.device("cpu"), dtype=torch.float32,
    rank_columns=plan.spec.rank_columns(),
)  # fmt: skip
lora = TrainableLora(base.decoder, plan.spec, 0)
config = StepConfig.of(plan.config)
steps = iter(range(1, plan.total_steps + 1))


def step() -> float:
    """Take the plan's next step; return its loss."""
    step = next(steps)
    samples, lr = plan.global_batch(step), plan.learning_rate(step)
    return take_step(lora, samples, config, step=step, lr=lr).loss_nats


serve(step)
