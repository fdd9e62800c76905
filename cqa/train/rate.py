"""How long a run takes, from a step of its own that is taken where it would run and thrown away."""

from __future__ import annotations

from dataclasses import dataclass

from cqa.data.samples import EncodedSample
from cqa.model.load import open_model, pick_device, pick_dtype
from cqa.model.lora import TrainableLora
from cqa.model.memory import reported
from cqa.schema.record import Record
from cqa.train.eval_loss import evaluate
from cqa.train.memory import check_memory
from cqa.train.passes import HINT, StepConfig, n_tokens
from cqa.train.plan import Plan
from cqa.train.step import StepResult, take_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate(Record):
    """What was measured, and what the whole run takes at that rate; loading is not in it."""

    step_tokens: int  # of the step that was measured
    step_s: float
    eval_s: float | None  # of the held-out samples, once; None where none are held out
    total_s: float


def measure_rate(plan: Plan) -> Rate:
    """Take a step of usual size twice, and time the second; evaluate once, if samples are held out.

    Raises:
        ResourceError: Memory does not hold the run.
        ModelError: The weights cannot be used.
        NumericsError: The loss of the step is not finite.
    """
    config = plan.config
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    check_memory(plan, device, dtype)
    with reported("a step", HINT):
        columns = plan.spec.rank_columns()
        base = open_model(plan.folder, config.device, config.dtype, rank_columns=columns)
        lora = TrainableLora(base.decoder, plan.spec, config.seed)
        samples = usual_batch(plan)
        _, took = (_step(plan, lora, samples, step) for step in (1, 2))  # the first one warms up
        eval_s = evaluate(plan, base.decoder, 0).eval_s if plan.validation else None
    per_token = took.seconds / took.n_tokens
    total = config.epochs * n_tokens(plan.train) * per_token + (eval_s or 0) * (config.epochs + 1)
    return Rate(
        step_tokens=took.n_tokens, step_s=took.seconds, eval_s=eval_s, total_s=round(total, 6)
    )


def _step(plan: Plan, lora: TrainableLora, samples: list[EncodedSample], step: int) -> StepResult:
    lr = plan.learning_rate(min(step, plan.total_steps))
    return take_step(lora, samples, StepConfig.of(plan.config), step=step, lr=lr)


def usual_batch(plan: Plan) -> list[EncodedSample]:
    """Return the global batch of the first epoch whose tokens are nearest the mean."""
    batches = [plan.global_batch(step) for step in range(1, plan.steps_per_epoch + 1)]
    mean = n_tokens(plan.train) / len(batches)
    return min(batches, key=lambda samples: abs(n_tokens(samples) - mean))
