"""The same sums with transformers alone: padded batches, log_softmax in fp32, gather."""

from __future__ import annotations

import torch

from cqa.bench.peers.child import serve, settings
from cqa.bench.peers.hugging_face import base_model, widened
from cqa.bench.shapes import BenchModel

bench_model = BenchModel.told(settings)
model = base_model(bench_model).eval()
pairs: list[tuple[list[int], list[int]]] = settings["pairs"]
order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))


@torch.no_grad()
def scores() -> list[float]:
    """Return log P(option | context) of every pair, texts of like length together."""
    sums = torch.empty(len(pairs), dtype=torch.float64, device=bench_model.device)
    for first in range(0, len(order), settings["batch_size"]):
        part = order[first : first + settings["batch_size"]]
        texts = [torch.tensor([*pairs[i][0], *pairs[i][1]]) for i in part]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(bench_model.device)
        logp = widened(model(ids[:, :-1], use_cache=False).logits).log_softmax(-1)
        taken = logp.gather(2, ids[:, 1:, None])[:, :, 0]
        for row, i in enumerate(part):
            stop = len(texts[row]) - 1
            sums[i] = taken[row, stop - len(pairs[i][1]) : stop].sum()
    values: list[float] = sums.tolist()
    return values


serve(scores)
