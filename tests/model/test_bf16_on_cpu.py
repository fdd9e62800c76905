"""On a CPU bf16 weights give the digits of an fp32 run on the same rounded weights."""

import random
from pathlib import Path

import pytest
import torch
from helpers import tiny_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from cqa.kernels.adamw import adam_rates, adamw_step, gradient_norm
from cqa.kernels.backend import native_problem
from cqa.kernels.embed import Noise
from cqa.kernels.matmul import mm
from cqa.kernels.philox import Dropout
from cqa.kernels.rms_norm import rms_norm
from cqa.kernels.token_logprobs import token_logprobs, token_stats
from cqa.layout import Tree, pack_documents, pack_trees
from cqa.model.decoder import Decoder
from cqa.model.load import load_model, weights_bytes
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.model.projection import MODULES

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(native_problem() is not None, reason="no native ops")


def two_decoders(folder: Path, rank_columns: dict[str, int]) -> tuple[Decoder, Decoder]:
    """Load an fp32 checkpoint in bf16, and what bf16 makes of it in fp32."""
    path = folder / "model.safetensors"
    narrow = load_model(folder, device=CPU, dtype=torch.bfloat16, rank_columns=rank_columns)
    rounded = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(rounded, path, metadata={"format": "pt"})
    wide = load_model(folder, device=CPU, dtype=torch.float32, rank_columns=rank_columns)
    return narrow.decoder, wide.decoder


def scores(decoder: Decoder) -> list[Tensor]:
    ids = random.Random(1).choices(range(decoder.config.vocab_size), k=90)
    trees = [Tree(tuple(ids[:40]), (tuple(ids[40:50]), tuple(ids[50:57]))), Tree((3,), ((4, 5),))]
    batch, _ = pack_trees(trees)
    hidden = decoder.hidden_for_scoring(batch)
    stats = token_stats(hidden, decoder.head, batch.target, backend=decoder.backend)
    return [stats.logp, stats.entropy, stats.lse, stats.rank]


def train(lora: TrainableLora) -> list[Tensor]:
    """Take three steps; return the losses and the adapter."""
    decoder, losses = lora.decoder, []
    ids = tuple(random.Random(2).choices(range(decoder.config.vocab_size), k=80))
    batch = pack_documents([(ids[:50], [True] * 50), (ids[50:], [False] * 10 + [True] * 20)])
    rows = torch.arange(batch.n_rows)
    for step in (1, 2, 3):
        noise = Noise(5.0, 1, step, rows, torch.tensor([50] * 50 + [30] * 30))
        hidden = decoder.hidden(batch, dropout=Dropout(0.2, 1, step, rows), noise=noise)
        loss = -token_logprobs(hidden, decoder.head, batch.target, backend="native").mean()
        loss.backward()
        rates = adam_rates(lr=1e-2, step=step, weight_decay=0.1, device=CPU)
        norm = gradient_norm(lora.state.grad)
        adamw_step(lora.state, rates, norm=norm, max_norm=1.0)
        lora.after_step()
        losses.append(loss.detach())
    return [*losses, lora.state.param.clone()]


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 20}),
        ("llama", {"hidden_size": 54, "head_dim": 8, "attention_bias": True, "mlp_bias": True}),
    ],
)
def test_scores_losses_and_adapters_have_the_digits_of_fp32(architecture, changes, tmp_path):
    spec = LoraSpec(5, 10.0, True, MODULES)
    narrow, wide = two_decoders(
        tiny_checkpoint(tmp_path, architecture, **changes), spec.rank_columns()
    )
    assert (narrow.backend, narrow.dtype, narrow.table.dtype) == (
        "native", torch.bfloat16, torch.bfloat16,
    )  # fmt: skip
    for a, b in zip(scores(narrow), scores(wide), strict=True):
        assert torch.equal(a, b)
    a, b = (TrainableLora(decoder, spec, seed=3) for decoder in (narrow, wide))
    for one, other in zip(train(a), train(b), strict=True):
        assert torch.equal(one, other)
    base = scores(wide)
    wide.detach_adapter()
    assert not torch.equal(base[0], scores(wide)[0])
    for one, other in zip(scores(narrow), base, strict=True):
        assert torch.equal(one, other)


def test_everything_but_the_adapter_s_columns_is_held_in_bf16(tmp_path):
    columns = dict.fromkeys(MODULES, 5)
    narrow, wide = two_decoders(tiny_checkpoint(tmp_path, "qwen2"), columns)
    low_bytes = sum(projection.low.nbytes for projection in narrow.projections())

    def held_bytes(decoder: Decoder) -> int:
        tensors = [decoder.table, decoder.head, decoder.norm]
        for layer in decoder.layers:
            tensors += [layer.input_norm, layer.post_norm, *(p.weight for p in layer.projections)]
        return sum(t.nbytes for t in tensors)

    assert 2 * held_bytes(narrow) == held_bytes(wide) - low_bytes
    for decoder, held in ((narrow, held_bytes(narrow) + low_bytes), (wide, held_bytes(wide))):
        assert weights_bytes(decoder.config, columns, decoder.dtype, CPU) == held


@pytest.mark.parametrize(
    ("m", "k", "n", "n_low"), [(1, 8, 3, 1), (50, 129, 97, 12), (13, 96, 64, 80)]
)
def test_products_take_bf16_weights_with_fp32_columns_behind_them(m, k, n, n_low):
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(m, k + n_low, generator=generator), torch.randn(m, n, generator=generator)
    weight = torch.randn(n, k, generator=generator).bfloat16()
    low = torch.randn(n, n_low, generator=generator)
    whole = torch.cat((weight.float(), low), dim=1)
    start = torch.randn(m, n, generator=generator)
    forward = mm(x, weight.T, start, tail=low.T, backend="native")
    assert torch.equal(forward, mm(x, whole.T, start, backend="native"))
    assert torch.equal(mm(dy, weight, tail=low, backend="native"), mm(dy, whole, backend="native"))
    with pytest.raises(RuntimeError, match="expected tail of shape"):
        mm(x, weight.T, tail=low[1:].T, backend="native")


def test_an_op_on_bf16_that_is_not_told_keeps_to_bf16():
    x, weight = torch.randn(3, 16).bfloat16(), torch.ones(16).bfloat16()
    assert rms_norm(x, weight, 1e-6).dtype == torch.bfloat16
    assert rms_norm(x.float(), weight, 1e-6, backend="native").dtype == torch.float32
