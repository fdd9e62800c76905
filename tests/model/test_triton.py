"""The whole decoder on Triton's kernels: training and scoring as the reference does them.

Without a GPU the kernels are interpreted, so the models are tiny and the blocks of rows short.
"""

import pytest
import torch
from helpers import tiny_checkpoint

from cqa.kernels.embed import Noise
from cqa.kernels.philox import Dropout
from cqa.kernels.token_logprobs import token_logprobs, token_stats
from cqa.layout import Tree, pack_documents, pack_trees
from cqa.model.block_rows import BLOCK_ROWS
from cqa.model.load import load_model
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.model.projection import MODULES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
SPEC = LoraSpec(4, 8.0, True, MODULES)


@pytest.fixture(params=["qwen2", "qwen3"])
def both(request, tmp_path, monkeypatch):
    """The same model with an adapter on both backends."""
    monkeypatch.setitem(BLOCK_ROWS, "triton", 64)
    folder = tiny_checkpoint(tmp_path, request.param, num_hidden_layers=2, head_dim=8)
    loras = []
    for backend in ("reference", "triton"):
        columns = SPEC.rank_columns()
        decoder = load_model(
            folder, device=DEVICE, dtype=torch.float32, rank_columns=columns, backend=backend
        ).decoder
        lora = TrainableLora(decoder, SPEC, seed=3)
        generator = torch.Generator().manual_seed(5)
        lora.state.param.copy_(torch.randn(lora.n_params, generator=generator) / 10)
        lora.after_step()
        loras.append(lora)
    return loras


def test_loss_and_gradients_of_a_window_equal_the_reference(both):
    ids = torch.randint(0, 200, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    batch = pack_documents([(ids[:25], [False] * 10 + [True] * 15), (ids[25:], [True] * 15)])
    batch = batch.to(DEVICE)
    rows = torch.arange(40, device=DEVICE)
    lengths = torch.tensor([25] * 25 + [15] * 15, device=DEVICE)
    losses, gradients = [], []
    for lora in both:
        hidden = lora.decoder.hidden(
            batch, dropout=Dropout(0.2, 1, 2, rows), noise=Noise(5.0, 1, 2, rows, lengths)
        )
        backend = lora.decoder.backend
        logp = token_logprobs(hidden, lora.decoder.head, batch.target, backend=backend)
        logp.mean().backward()
        losses.append(logp.detach())
        gradients.append(lora.state.grad)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    assert gradients[0].abs().max() > 0.01
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_scores_equal_the_reference(both):
    ids = torch.randint(0, 200, (50,), generator=torch.Generator().manual_seed(2)).tolist()
    trees = [Tree(tuple(ids[:20]), (tuple(ids[20:30]), tuple(ids[30:]))), Tree((7,), ((8, 9),))]
    batch = pack_trees(trees)[0].to(DEVICE)
    scores = []
    for lora in both:
        hidden = lora.decoder.hidden_for_scoring(batch)
        backend = lora.decoder.backend
        scores.append(token_stats(hidden, lora.decoder.head, batch.target, backend=backend).logp)
    torch.testing.assert_close(*scores, rtol=0, atol=2e-5)
