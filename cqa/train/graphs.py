"""CUDA graphs of a training pass: for small models the host would be slower than the device.

A graph replays one fixed sequence of launches on fixed memory. So a pass is filled up with one more
text to a whole number of buckets, whose tokens are asked for with weight 0; its inputs are copied
into the graph's own tensors; and there is one graph for every combination of sizes. The result
is that of the pass alone, up to the order of its sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cqa.data.samples import EncodedSample
from cqa.errors import ResourceError
from cqa.kernels.attention import Gathered, gathered, library_for
from cqa.kernels.embed import Noise
from cqa.kernels.philox import Dropout, device_key
from cqa.kernels.token_logprobs import token_logprobs
from cqa.layout import PackedBatch, pack_documents
from cqa.model.decoder import Decoder, attention_spans
from cqa.model.lora import TrainableLora
from cqa.train.config import TrainConfig

BUCKET_ROWS, BUCKET_TARGETS = 256, 64
Capture = Callable[[Callable[[], None]], Callable[[], None]]


class CudaCapture:
    """Records functions whose launches leave no tensor behind.

    So all graphs work in the memory of the first: the largest pass decides how much that is, not
    the number of sizes that came.
    """

    def __init__(self) -> None:
        self._first: torch.cuda.CUDAGraph | None = None

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record a function's launches; return what repeats them."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # kernels are compiled, libraries choose theirs and take workspace
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._first.pool() if self._first else None):
            function()
        self._first = self._first or graph
        return graph.replay


def fill_up(samples: Sequence[EncodedSample]) -> tuple[PackedBatch, int]:
    """Pack samples and one more text, to whole buckets; return how many targets are the samples'.

    The last rows of that text are asked for, so that rows that the last layer keeps and targets
    grow alike.
    """
    documents = [(sample.ids, sample.learned) for sample in samples]
    n_targets = sum(sum(learned[1:]) for _, learned in documents)
    asked = -n_targets % BUCKET_TARGETS or BUCKET_TARGETS
    n_rows = sum(len(ids) for ids, _ in documents)
    more = asked + 1 + -(n_rows + asked + 1) % BUCKET_ROWS
    filling = ((0,) * more, [i >= more - asked for i in range(more)])
    return pack_documents([*documents, filling]), n_targets


@dataclass(slots=True)
class _Inputs:
    """A graph's own tensors."""

    batch: PackedBatch
    weights: Tensor  # (T,) of each target in the loss
    spans: tuple[Gathered, Gathered]
    key: Tensor  # (seed, step)
    loss: Tensor  # () fp64, the result

    def load(self, other: _Inputs) -> None:
        """Take the values of another pass of the same sizes."""
        for mine, its in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(its)

    def tensors(self) -> list[Tensor]:
        """Everything that differs from pass to pass, in one order."""
        packed = [getattr(self.batch, field.name) for field in fields(self.batch)]
        laid_out = [tensor for part in self.spans for tensor in part]
        given = [*packed, self.weights, *laid_out, self.key]
        return [tensor for tensor in given if isinstance(tensor, Tensor)]

    def sizes(self) -> tuple[int, ...]:
        """What tells one graph from another."""
        return tuple(tensor.shape[0] for tensor in self.tensors())


def _a_query(decoder: Decoder) -> Tensor:
    config = decoder.config
    return torch.empty(
        1, config.n_heads, config.head_dim, dtype=decoder.dtype, device=decoder.device
    )


class Graphs:
    """Passes of one decoder in training, by graphs that are recorded when a size first comes."""

    def __init__(
        self, decoder: Decoder, config: TrainConfig, grad: Tensor, capture: Capture
    ) -> None:
        """Nothing is recorded yet; `grad` is the flat gradient, which recording must not change."""
        self._decoder, self._config, self._grad, self._capture = decoder, config, grad, capture
        self._recorded: dict[tuple[int, ...], tuple[_Inputs, Callable[[], None]]] = {}

    @classmethod
    def of(cls, lora: TrainableLora, config: TrainConfig) -> Graphs:
        """Return graphs for a run on a GPU.

        Raises:
            ResourceError: Where this decoder runs, a pass cannot be recorded.
        """
        decoder = lora.decoder
        if decoder.device.type != "cuda" or library_for(_a_query(decoder)) is None:
            raise ResourceError(
                "expected a GPU with attention over segments in 16 bits for --cuda-graphs, got "
                f"{decoder.dtype} on {decoder.device}",
                hint="leave --cuda-graphs out, or use --dtype bf16 on an A100 or later",
            )
        return cls(decoder, config, lora.state.grad, CudaCapture())

    def run(self, samples: Sequence[EncodedSample], step: int, n_labels: int) -> Tensor:
        """Add a pass's gradient to the flat buffer; return its share of the loss, () fp64."""
        inputs = self._inputs(samples, step, n_labels)
        sizes = inputs.sizes()
        if sizes not in self._recorded:
            before = self._grad.clone()
            self._recorded[sizes] = inputs, self._capture(lambda: self._pass(inputs))
            self._grad.copy_(before)
        own, replay = self._recorded[sizes]
        own.load(inputs)
        replay()
        return own.loss.clone()

    def _inputs(self, samples: Sequence[EncodedSample], step: int, n_labels: int) -> _Inputs:
        device = self._decoder.device
        batch, n_targets = fill_up(samples)
        batch = batch.to(device)
        weights = torch.zeros(batch.n_targets, device=device)
        weights[:n_targets] = 1 / n_labels
        everywhere, last = (
            gathered(spans, batch.n_rows, device)._replace(
                longest_query=batch.n_rows, longest_key=batch.n_rows
            )
            for spans in attention_spans(batch)
        )
        key = device_key(self._config.seed, step, device)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        return _Inputs(batch, weights, (everywhere, last), key, loss)

    def _pass(self, own: _Inputs) -> None:
        """Forward and backward, on the graph's own tensors alone."""
        config, decoder, batch = self._config, self._decoder, own.batch
        rows = torch.arange(batch.n_rows, device=decoder.device)
        dropout, noise = None, None
        if config.dropout:
            dropout = Dropout(config.dropout, config.seed, 0, rows, own.key)
        if config.neftune_alpha:
            noise = Noise(config.neftune_alpha, config.seed, 0, rows, batch.lengths, own.key)
        hidden = decoder.hidden(batch, dropout=dropout, noise=noise, spans=own.spans)
        logp = token_logprobs(hidden, decoder.head, batch.target, backend=decoder.backend)
        loss = -(logp * own.weights).sum()
        loss.backward()
        own.loss.copy_(loss.detach())
