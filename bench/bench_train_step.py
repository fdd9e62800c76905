"""One accumulation window of the demo model: ours, against transformers + PEFT."""

import pytest
import torch
from compare import record, turn_about

from cqa.study.demo import ASSETS
from cqa.train.config import TrainConfig
from cqa.train.loop import take_step
from cqa.train.plan import make_plan

pytestmark = pytest.mark.filterwarnings(  # PEFT asks transformers by an older name
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)


def bench_window(benchmark, tmp_path):
    config = TrainConfig(
        model=str(ASSETS / "model"), data=ASSETS / "train.jsonl", out=tmp_path / "run",
        dropout=0.0, neftune_alpha=0.0,
    )  # fmt: skip
    plan = make_plan(config)
    window = plan.window(2)
    ours_step = _ours(plan)
    peer_step = _peer(plan, window)
    assert ours_step() == pytest.approx(peer_step(), rel=1e-4)
    record(benchmark, "transformers_peft", turn_about(ours_step, peer_step))
    benchmark.extra_info["n_tokens"] = sum(len(sample.ids) for sample in window)
    benchmark.pedantic(ours_step, rounds=5)


def _ours(plan):
    from cqa.model.load import load_model
    from cqa.model.lora import TrainableLora

    base = load_model(
        plan.folder, device=torch.device("cpu"), dtype=torch.float32,
        rank_columns=plan.spec.rank_columns(),
    )  # fmt: skip
    lora = TrainableLora(base.decoder, plan.spec, plan.config.seed)
    return lambda: take_step(plan, lora, 2)["loss_nats"]


def _peer(plan, window):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    spec = plan.spec
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(plan.folder, dtype=torch.float32),
        LoraConfig(
            r=spec.rank, lora_alpha=spec.alpha, use_rslora=spec.rslora, lora_dropout=0.0,
            target_modules=[f"{name}_proj" for name in spec.targets],
        ),
    )  # fmt: skip
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.learning_rate(2), weight_decay=0.0)
    n_labels = sum(sample.n_labels for sample in window)

    def step():
        total = 0.0
        for sample in window:
            ids, learned = torch.tensor([sample.ids]), torch.tensor([sample.learned])
            labels = ids.masked_fill(~learned, -100)
            logits = model(ids).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
            (loss / n_labels).backward()
            total += float(loss.detach()) / n_labels
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step
