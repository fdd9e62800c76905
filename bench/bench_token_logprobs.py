"""Log-probabilities of targets: ours in chunks, against log_softmax over all logits."""

import pytest
import torch
from compare import record, turn_about

from cqa.kernels.token_logprobs import token_logprobs

SHAPES = [(460, 896, 151_936), (2048, 192, 4096)]  # the 0.5 B head, the demo model's


@pytest.mark.parametrize(("M", "D", "V"), SHAPES, ids=["0.5B", "demo"])
def bench_loss_forward_and_backward(benchmark, M, D, V):
    torch.manual_seed(0)
    hidden = torch.randn(M, D).requires_grad_()
    head = torch.randn(V, D) / D**0.5
    target = torch.randint(V, (M,))

    def ours():
        hidden.grad = None
        loss = -token_logprobs(hidden, head, target).mean()
        loss.backward()
        return loss.detach()

    def plain():
        hidden.grad = None
        loss = torch.nn.functional.cross_entropy(hidden @ head.T, target)
        loss.backward()
        return loss.detach()

    expected, gradient = float(plain()), hidden.grad
    assert float(ours()) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(hidden.grad, gradient, rtol=1e-4, atol=1e-7)
    record(benchmark, "torch_cross_entropy", turn_about(ours, plain))
    benchmark.pedantic(ours, rounds=3)
