"""CUDA graphs of a training pass: for small models the host would be slower than the device.

A graph replays one fixed sequence of launches on fixed memory. So a pass is filled up with one more
text to a whole number of buckets, whose targets do not count; its tensors are copied into the
recording's own, which nothing else refers to; and there is one recording for every combination of
sizes. The result is that of the pass alone, up to the order of its sums. Where memory runs out
while a pass is recorded, that pass and all later ones are run as without graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from cqa.data.samples import EncodedSample
from cqa.errors import ResourceError
from cqa.kernels.attention import gathered, library_for
from cqa.model.decoder import Decoder
from cqa.model.forward_pass import attention_spans
from cqa.model.lora import TrainableLora
from cqa.model.memory import give_back, ran_out
from cqa.train.passes import StepConfig, TrainingPass, forward_backward, n_labels, n_tokens

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


def filling(samples: Sequence[EncodedSample]) -> EncodedSample:
    """Return the text that fills samples up to whole buckets of rows and of targets.

    Its last rows are asked for, so that rows that the last layer keeps and targets grow alike.
    """
    asked = -n_labels(samples) % BUCKET_TARGETS or BUCKET_TARGETS
    more = asked + 1 + -(n_tokens(samples) + asked + 1) % BUCKET_ROWS
    loss_mask = (False,) * (more - asked) + (True,) * asked
    return EncodedSample("filling", (0,) * more, loss_mask, slice(0, 0), "")


def replayable(
    samples: Sequence[EncodedSample], device: torch.device, *, seed: int, step: int
) -> TrainingPass:
    """Pack a whole batch, filled up, with all that differs from pass to pass in a tensor."""
    labels = n_labels(samples)
    given = TrainingPass.pack(
        [*samples, filling(samples)], device, seed=seed, step=step, n_labels=labels
    )
    is_label = torch.zeros(given.batch.n_targets, device=device)
    is_label[:labels] = 1
    n_rows = given.batch.n_rows
    everywhere, last = (
        gathered(spans, n_rows, device)._replace(longest_query=n_rows, longest_key=n_rows)
        for spans in attention_spans(given.batch)
    )
    return replace(
        given,
        n_labels=torch.tensor(float(labels), device=device),
        is_label=is_label,
        spans=(everywhere, last),
    )


def tensors_of(given: TrainingPass) -> list[Tensor]:
    """Return everything that differs from pass to pass, in one order."""
    packed = [getattr(given.batch, field.name) for field in fields(given.batch)]
    beside = [getattr(given, field.name) for field in fields(given)]
    laid_out = [value for spans in given.spans or () for value in spans]
    return [value for value in (*packed, *beside, *laid_out) if isinstance(value, Tensor)]


@dataclass(frozen=True, slots=True)
class _Recording:
    """A recorded pass, and the tensors that it reads and writes, which are its own."""

    given: TrainingPass
    loss: Tensor  # () fp64
    replay: Callable[[], None]


def _a_query(decoder: Decoder) -> Tensor:
    config = decoder.config
    return torch.empty(
        1, config.n_heads, config.head_dim, dtype=decoder.dtype, device=decoder.device
    )


class Graphs:
    """Passes of one decoder in training, by graphs that are recorded when a size first comes."""

    def __init__(self, lora: TrainableLora, config: StepConfig, capture: Capture) -> None:
        """Nothing is recorded yet."""
        self._lora, self._decoder = lora, lora.decoder
        self._config, self._capture = config, capture
        self._recorded: dict[tuple[torch.Size, ...], _Recording] = {}
        self.ran_out = False  # of memory, while recording: nothing is recorded or replayed then

    @classmethod
    def of(cls, lora: TrainableLora, config: StepConfig) -> Graphs:
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
        return cls(lora, config, CudaCapture())

    def run(self, samples: Sequence[EncodedSample], step: int) -> Tensor | None:
        """Write a whole batch's gradient to the flat buffer; return its mean loss, () fp64.

        It is None, and nothing of the buffer counts, once memory ran out while a pass was recorded.
        """
        if self.ran_out:
            return None
        given = replayable(samples, self._decoder.device, seed=self._config.seed, step=step)
        sizes = tuple(tensor.shape for tensor in tensors_of(given))
        if sizes not in self._recorded and not self._record(sizes, given):
            return None
        recording = self._recorded[sizes]
        for own, its in zip(tensors_of(recording.given), tensors_of(given), strict=True):
            own.copy_(its)
        recording.replay()
        self._lora.note_gradient()
        return recording.loss.clone()

    def _record(self, sizes: tuple[torch.Size, ...], given: TrainingPass) -> bool:
        """Record a pass on copies of its tensors; return False where memory ran out."""
        try:
            own = deepcopy(given)
            loss = torch.zeros((), dtype=torch.float64, device=self._decoder.device)

            def run() -> None:
                self._lora.forget_gradient()  # so what is recorded writes
                loss.copy_(forward_backward(self._decoder, own, self._config))

            self._recorded[sizes] = _Recording(own, loss, self._capture(run))
        except (RuntimeError, MemoryError) as error:
            if not any(map(ran_out, _causes(error))):
                raise
            self.ran_out = True
        self._lora.forget_gradient()
        if self.ran_out:
            self._recorded.clear()
            give_back()
        return not self.ran_out


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those during which it was raised: ending a failed capture raises one."""
    while error is not None:
        yield error
        error = error.__context__
