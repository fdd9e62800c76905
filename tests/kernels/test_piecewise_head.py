"""The head in pieces: the bits of the whole head in scoring, its accuracy in training."""

import pytest
import torch
from helpers import assert_as_accurate

from cqa.kernels.backend import Backend, native_problem
from cqa.kernels.piecewise_head import (
    PIECE_MULTIPLE,
    HeadPieces,
    token_logprobs_of_pieces,
    token_stats_of_pieces,
)
from cqa.kernels.token_logprobs import token_logprobs, token_stats


@pytest.fixture(autouse=True)
def backend() -> Backend:
    """The one that reads a head in pieces."""
    if problem := native_problem():
        pytest.skip(f"no native ops: {problem}")
    return "native"


V, D, M = 3 * PIECE_MULTIPLE + 77, 48, 13


def case(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(M, D, generator=generator)
    head = torch.randn(V, D, generator=generator).to(dtype)
    target = torch.randint(0, V, (M,), generator=generator)
    target[:4] = torch.tensor([0, V - 1, PIECE_MULTIPLE, PIECE_MULTIPLE - 1])
    hidden[5] = 9 * head[target[5]].float()  # nearly certain
    return hidden, head, target


def in_pieces(head: torch.Tensor, height: int) -> HeadPieces:
    return HeadPieces(
        V,
        lambda ids: head[ids],
        lambda: ((first, head[first : first + height]) for first in range(0, V, height)),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spans", [1, 2, 9])
@pytest.mark.parametrize("varentropy", [False, True])
def test_scoring_has_the_bits_of_the_whole_head(dtype, spans, varentropy):
    hidden, head, target = case(dtype)
    whole = token_stats(hidden, head, target, backend="native", varentropy=varentropy)
    pieces = in_pieces(head, spans * PIECE_MULTIPLE)
    found = token_stats_of_pieces(hidden, pieces, target, varentropy=varentropy)
    for name in ("logp", "entropy", "rank", "lse", "varentropy"):
        ours, theirs = getattr(found, name), getattr(whole, name)
        assert ours is theirs is None or torch.equal(ours, theirs), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_is_as_accurate_as_the_whole_head(dtype):
    hidden, head, target = case(dtype)
    weight = torch.linspace(-1, 1, M)

    def of(h: torch.Tensor, logp) -> tuple[torch.Tensor, torch.Tensor]:
        h = h.clone().requires_grad_()
        out = logp(h)
        (out * weight.to(out.dtype)).sum().backward()
        return out.detach(), h.grad

    pieces = in_pieces(head, PIECE_MULTIPLE)
    ours = of(hidden, lambda h: token_logprobs_of_pieces(h, pieces, target))
    naive = of(hidden, lambda h: token_logprobs(h, head, target, backend="native"))
    truth = of(
        hidden.double(), lambda h: torch.log_softmax(h @ head.double().T, 1)[range(M), target]
    )
    for name, a, b, c in zip(("logp", "gradient"), ours, naive, truth, strict=True):
        assert_as_accurate(name, a, b, c)


def test_pieces_that_begin_elsewhere_are_refused():
    hidden, head, target = case(torch.float32)
    with pytest.raises(RuntimeError, match="expected a piece from a multiple of 2048, got 100"):
        token_stats_of_pieces(hidden, in_pieces(head, 100), target)
