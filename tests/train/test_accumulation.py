"""The gradient of a step in its flat buffer: the first pass writes it, later ones add."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_checkpoint

from cqa.data.samples import EncodedSample
from cqa.kernels.backend import native_problem
from cqa.model.load import load_model
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.train.passes import StepConfig
from cqa.train.step import backward_passes

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TRITON = pytest.param("triton", marks=[pytest.mark.gpu] if DEVICE.type == "cuda" else [])
CONFIG = StepConfig(dropout=0.2, neftune_alpha=5.0, seed=3)
LENGTHS = (20, 4, 13)
pytestmark = pytest.mark.parametrize("backend", ["reference", "native", TRITON])


def sample(n: int) -> EncodedSample:
    ids = torch.randint(0, 200, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    return EncodedSample(str(n), tuple(ids), [j >= n // 3 for j in range(n)], slice(0, 0), "")


def new_lora(folder: Path, backend: str, n_layers: int) -> TrainableLora:
    if backend == "native" and (problem := native_problem()):
        pytest.skip(f"no native ops: {problem}")
    spec = LoraSpec(4, 8.0, True, ("v", "down"))
    decoder = load_model(
        tiny_checkpoint(folder, "qwen2", num_hidden_layers=n_layers, head_dim=8, hidden_size=24),
        device=DEVICE if backend == "triton" else CPU, dtype=torch.float32,
        rank_columns=spec.rank_columns(), backend=backend,
    ).decoder  # fmt: skip
    lora = TrainableLora(decoder, spec, seed=3)
    generator = torch.Generator().manual_seed(5)
    lora.state.param.copy_(torch.randn(lora.n_params, generator=generator) / 10)
    lora.after_step()
    return lora


@pytest.fixture
def lora(backend, tmp_path) -> TrainableLora:
    return new_lora(tmp_path, backend, 1)


def gradient(
    lora: TrainableLora, passes: list[list[EncodedSample]], config: StepConfig = CONFIG
) -> torch.Tensor:
    lora.forget_gradient()
    lora.state.grad.fill_(torch.nan)  # of a step before
    backward_passes(lora.decoder, passes, config, step=2)
    lora.complete_gradient()
    return lora.state.grad.clone()


def test_passes_of_a_batch_add_up_to_the_gradient_of_one(lora):
    samples = [sample(n) for n in LENGTHS]
    whole = gradient(lora, [samples])
    parts = [gradient(lora, [[one] for one in samples]) for _ in range(2)]
    assert whole.abs().max() > 1e-2
    assert torch.allclose(parts[0], whole, rtol=0, atol=4e-6 * float(whole.abs().max()))
    assert torch.equal(*parts)
    assert torch.equal(gradient(lora, [samples]), whole)


def test_without_a_pass_the_gradient_is_zero(lora):
    assert torch.equal(gradient(lora, []), torch.zeros_like(lora.state.grad))


def test_what_a_failed_pass_has_left_does_not_count(lora):
    samples = [sample(n) for n in LENGTHS]
    alone = gradient(lora, [samples[:1]])
    gradient(lora, [samples])
    assert torch.equal(gradient(lora, [samples[:1]]), alone)


def test_recomputed_layers_drop_and_add_up_the_same(backend, tmp_path):
    lora = new_lora(tmp_path, backend, 2)
    passes = [[sample(9)], [sample(5)]]
    kept = gradient(lora, passes)
    assert torch.equal(gradient(lora, passes, replace(CONFIG, recompute=True)), kept)
