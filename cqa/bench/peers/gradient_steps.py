"""Optimizer steps of a transformers model over the window told of, the usual way in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cqa.bench.peers.child import serve, settings
from cqa.bench.shapes import BenchModel


def serve_steps(model: Any, loss_of: Callable[[Any, Tensor, Tensor, int], Tensor]) -> None:
    """Take a step a call: one sample at a time, gradients accumulated, clipped, AdamW.

    Args:
        model: Only its adapter is trained.
        loss_of: Gives a sample's part of the window's mean loss from the model, ids and labels,
            shape (1, L), and the window's number of labels.
    """
    device = BenchModel.told(settings).device
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=device == "cuda")
    window = []
    for ids, loss_mask in settings["window"]:
        known = torch.tensor([ids], device=device)
        is_label = torch.tensor([loss_mask], device=device).bool()
        window.append((known, known.masked_fill(~is_label, -100)))
    n_labels = sum(int((labels[0, 1:] >= 0).sum()) for _, labels in window)

    def step(dropout: float) -> list[float]:
        """Return the loss and the gradient's norm; dropout is on, at the recipe's 0.05, or off."""
        model.train(dropout > 0)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for ids, labels in window:
            loss = loss_of(model, ids, labels, n_labels)
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return [float(total), float(norm)]

    serve(step)
