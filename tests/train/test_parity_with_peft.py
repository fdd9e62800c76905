"""Training equals an independent loop of transformers, PEFT and torch.optim on the demo model."""

import math
import re
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from helpers import DEMO, read_lines, write_lines
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from cqa.data.samples import EncodedSample
from cqa.kernels.embed import Noise
from cqa.kernels.philox import Dropout
from cqa.model.adapter import write_adapter
from cqa.model.load import load_model
from cqa.model.lora import TrainableLora
from cqa.train.config import TrainConfig
from cqa.train.loop import train
from cqa.train.passes import StepConfig
from cqa.train.plan import Plan, make_plan, split_passes
from cqa.train.step import backward_passes, take_step

pytestmark = pytest.mark.filterwarnings(  # PEFT asks transformers by an older name
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)

MODEL = DEMO / "model"
RECIPE = {
    "epochs": 3,
    "rank": 8,
    "alpha": 16.0,
    "lr": 1e-3,
    "max_grad_norm": 1.3,
    "dropout": 0.0,
    "neftune_alpha": 0.0,
    "validation": "0",
    "seed": 5,
    "device": "cpu",
    "dtype": "fp32",
}
OTHER = {
    "rslora": False,
    "targets": ("q", "v", "down"),
    "weight_decay": 0.1,
    "max_grad_norm": 0.0,
    "micro_batch": 2,
}
RUNS = {"recipe": (21, {}), "other-settings": (7, OTHER)}  # number of samples, changed settings
DROPPED = {"dropout": 0.05, "neftune_alpha": 5.0, "grad_accum": 3}
STEP = 4


def demo_samples(n: int) -> list[dict]:
    """The first demo samples, cut short so that the reference takes seconds."""
    return [
        {"id": s["id"], "prompt": s["prompt"][-200:], "response": s["response"][: 100 + 7 * i]}
        for i, s in enumerate(read_lines(DEMO / "train.jsonl")[:n])
    ]


def peft_model(adapter: Path, config: TrainConfig) -> PeftModel:
    """The base in fp32 with a trainable adapter: made by PEFT, then given our weights."""
    base = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        target_modules=[f"{name}_proj" for name in config.targets],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora)
    model.load_adapter(str(adapter), "default", is_trainable=True)
    return model


class Reference:
    """The training loop as a reader of the paper would write it, over the logged sample order."""

    def __init__(self, config: TrainConfig, samples: list[dict], steps: list[dict]) -> None:
        self.config = config
        self.samples = {sample["id"]: sample for sample in samples}
        self.tokenizer = AutoTokenizer.from_pretrained(config.model)
        self.model = peft_model(config.out / "init", config)
        self.steps = [*self._run([step["sample_ids"] for step in steps])]
        self.adapter = {k: v.clone() for k, v in get_peft_model_state_dict(self.model).items()}

    def _run(self, windows: list[list[str]]) -> Iterator[dict]:
        config = self.config
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, config.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=config.weight_decay
        )
        warmup = math.ceil(config.warmup_ratio * len(windows))
        schedule = get_cosine_schedule_with_warmup(optimizer, warmup, len(windows))
        for window in windows:
            encoded = [self._encode(self.samples[name]) for name in window]
            n_labels = sum(len(response) for _, response in encoded)
            loss = sum(self._summed_loss(*sample) for sample in encoded) / n_labels
            loss.backward()
            limit = config.max_grad_norm or math.inf
            norm = torch.nn.utils.clip_grad_norm_(trained, limit)
            lr = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            yield {"loss_nats": loss.item(), "grad_norm": norm.item(), "lr": lr} | {
                "n_labels": n_labels,
                "n_tokens": sum(len(prompt) + len(response) for prompt, response in encoded),
            }

    def _encode(self, sample: dict) -> tuple[list[int], list[int]]:
        prompt, response = (self.tokenizer(sample[k]).input_ids for k in ("prompt", "response"))
        return prompt, [*response, self.tokenizer.convert_tokens_to_ids("<|endoftext|>")]

    def _summed_loss(self, prompt: list[int], response: list[int]) -> Tensor:
        logits = self.model(torch.tensor([prompt + response])).logits[0]
        return cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(response), reduction="sum")


@pytest.fixture(scope="module", params=RUNS)
def pair(request, tmp_path_factory) -> tuple[TrainConfig, list[dict], Reference]:
    """One run of ours, its step events, and the reference that followed the same order."""
    n, changes = RUNS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    samples = demo_samples(n)
    data = write_lines(folder / "train.jsonl", samples)
    settings = {**RECIPE, **changes}
    config = TrainConfig(model=str(MODEL), data=(data,), out=folder / "run", **settings)
    train(config)
    steps = [e for e in read_lines(config.out / "log.jsonl") if e["event"] == "step"]
    return config, steps, Reference(config, samples, steps)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("field", "tolerance"),
    [("loss_nats", 1e-5), ("grad_norm", 1e-4), ("lr", 1e-12), ("n_labels", 0), ("n_tokens", 0)],
)
def test_every_step_equals_the_reference_in(pair, field, tolerance):
    _, steps, reference = pair
    actual = [step[field] for step in steps]
    expected = [step[field] for step in reference.steps]
    assert actual == pytest.approx(expected, rel=tolerance, abs=0)


def test_final_adapter_equals_the_reference(pair):
    config, _, reference = pair
    ours = load_file(config.out / "epoch-03" / "adapter_model.safetensors")
    assert ours.keys() == reference.adapter.keys()
    worst = max(relative(ours[name], reference.adapter[name]) for name in ours)
    assert worst <= 1e-4


def test_training_moved_every_tensor_further_than_the_tolerance(pair):
    config, _, _ = pair
    first, last = (
        load_file(config.out / name / "adapter_model.safetensors") for name in ("init", "epoch-03")
    )
    assert min(relative(first[name], last[name]) for name in first) > 1e-3


def test_last_window_of_each_epoch_is_partial_and_the_first_step_has_rate_zero(pair):
    config, steps, _ = pair
    sizes = [len(step["sample_ids"]) for step in steps]
    full = len(steps) // config.epochs - 1
    assert sizes == [*[config.global_batch_size] * full, sizes[-1]] * config.epochs
    assert sizes[-1] < config.global_batch_size
    assert steps[0]["lr"] == 0


def test_gradient_norms_lie_on_both_sides_of_the_limit(pair):
    config, steps, _ = pair
    if config.max_grad_norm:
        norms = [step["grad_norm"] for step in steps]
        assert min(norms) < config.max_grad_norm < max(norms)


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory) -> Callable[..., Plan]:
    """Plans with dropout and noise, but for the given changes."""
    data = write_lines(tmp_path_factory.mktemp("data") / "train.jsonl", demo_samples(9))

    def make(**changes) -> Plan:
        settings = {**RECIPE, **DROPPED, **changes}
        return make_plan(TrainConfig(model=str(MODEL), data=(data,), out=data.parent, **settings))

    return make


@pytest.fixture(scope="module")
def lora(plan_of) -> TrainableLora:
    """An adapter away from its start: with B zero, A would have no gradient."""
    plan = plan_of()
    base = load_model(
        MODEL,
        device=torch.device("cpu"),
        dtype=torch.float32,
        rank_columns=plan.spec.rank_columns(),
    )
    lora = TrainableLora(base.decoder, plan.spec, plan.config.seed)
    generator = torch.Generator().manual_seed(3)
    lora.state.param.add_(torch.randn(lora.n_params, generator=generator), alpha=0.02)
    lora.after_step()
    return lora


def tensor_key(name: str) -> tuple[int, str, int]:
    """Layer, module and 0 for A, 1 for B, of PEFT's name of a tensor."""
    layer, module, ab = re.search(r"layers\.(\d+)\.\w+\.(\w+)_proj\.lora_([AB])\.", name).groups()
    return int(layer), module, "AB".index(ab)


def our_gradient(lora: TrainableLora, plan: Plan) -> tuple[float, Tensor]:
    passes = split_passes(plan.global_batch(STEP), plan.config.pass_tokens)
    lora.state.grad.zero_()
    loss = backward_passes(lora.decoder, passes, StepConfig.of(plan.config), step=STEP)
    return float(loss), lora.state.grad.clone()


class Masked(torch.nn.Module):
    """Dropout with a given mask, in the place of one `lora_dropout` of PEFT."""

    def __init__(self, number: int, n_cols: int) -> None:
        super().__init__()
        self.number, self.n_cols = number, n_cols
        self.dropout: Dropout

    def forward(self, x: Tensor) -> Tensor:
        return x * self.dropout.keep(self.number, self.n_cols) * self.dropout.scale


def masked_loss(model: PeftModel, config: TrainConfig, batch: list[EncodedSample]) -> Tensor:
    """The global batch's loss sample by sample, noise and masks drawn for their rows in it."""
    table = model.get_input_embeddings().weight
    starts = accumulate((len(sample.ids) for sample in batch), initial=0)
    loss = torch.zeros(())
    for sample, start in zip(batch, starts, strict=False):
        length = len(sample.ids)
        rows, ids = torch.arange(start, start + length), torch.tensor(sample.ids)
        for module in model.modules():
            if isinstance(module, Masked):
                module.dropout = Dropout(config.dropout, config.seed, STEP, rows)
        noise = Noise(config.neftune_alpha, config.seed, STEP, rows, torch.full((length,), length))
        magnitude = config.neftune_alpha / math.sqrt(length * table.shape[1])
        embeds = table[ids] + magnitude * noise.uniform(table.shape[1])
        logits = model(inputs_embeds=embeds[None]).logits[0, :-1]
        is_label = torch.tensor(sample.loss_mask[1:])
        loss = loss + cross_entropy(logits[is_label], ids[1:][is_label], reduction="sum")
    return loss / sum(sample.n_labels for sample in batch)


def test_dropout_and_noise_give_the_gradients_of_peft_with_the_same_masks(lora, plan_of, tmp_path):
    plan = plan_of()
    write_adapter(tmp_path, lora.spec, lora.weights, "base", 0.0)
    model = peft_model(tmp_path, plan.config)
    for name, module in model.named_modules():
        if hasattr(module, "lora_dropout"):
            layer, projection, _ = tensor_key(f"{name}.lora_A.")
            number = 7 * layer + ["q", "k", "v", "o", "gate", "up", "down"].index(projection)
            module.lora_dropout["default"] = Masked(number, module.in_features)
    loss = masked_loss(model, plan.config, plan.global_batch(STEP))
    loss.backward()

    our_loss, grad = our_gradient(lora, plan)
    assert our_loss == pytest.approx(loss.item(), rel=1e-5)
    trained = {tensor_key(n): p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(lora.weights)
    for (layer, name, ab), expected in trained.items():
        tensor = lora.weights[layer, name][ab]
        start = tensor.storage_offset()
        actual = grad[start : start + tensor.numel()].view(tensor.shape)
        assert relative(actual, expected) <= 1e-4, (layer, name, ab)


@pytest.mark.parametrize("changes", [{"dropout": 0.0}, {"neftune_alpha": 0.0}], ids=str)
def test_dropout_and_noise_each_change_the_gradient(lora, plan_of, changes):
    _, with_both = our_gradient(lora, plan_of())
    _, with_one = our_gradient(lora, plan_of(**changes))
    assert relative(with_one, with_both) > 1e-2


@pytest.mark.parametrize(("pass_tokens", "n_passes"), [(1, 3), (200, 2)])
def test_splitting_a_window_into_passes_changes_only_rounding(lora, plan_of, pass_tokens, n_passes):
    plan = plan_of(pass_tokens=pass_tokens)
    assert len(split_passes(plan.global_batch(STEP), pass_tokens)) == n_passes
    loss, whole = our_gradient(lora, plan_of())
    split_loss, split = our_gradient(lora, plan)
    assert split_loss == pytest.approx(loss, rel=1e-6)
    assert relative(split, whole) <= 1e-5


def test_recomputing_activations_gives_the_same_gradient(lora, plan_of):
    loss, kept = our_gradient(lora, plan_of())
    again_loss, again = our_gradient(lora, plan_of(recompute=True))
    assert again_loss == loss
    assert torch.equal(again, kept)


def test_micro_batches_of_a_window_do_not_change_its_gradient(lora, plan_of):
    loss, one = our_gradient(lora, plan_of())
    other_loss, other = our_gradient(lora, plan_of(micro_batch=3, grad_accum=1))
    assert other_loss == loss
    assert torch.equal(other, one)


def test_the_first_step_at_rate_zero_changes_no_parameter(lora, plan_of):
    plan = plan_of()
    before = lora.state.param.clone()
    lr = plan.learning_rate(1)
    batch, config = plan.global_batch(1), StepConfig.of(plan.config)
    took, again = (take_step(lora, batch, config, step=1, lr=lr) for _ in range(2))
    assert lr == 0
    assert took.grad_norm > 0
    assert torch.equal(lora.state.param, before)
    assert again.grad_norm == took.grad_norm  # nothing is left of the first
