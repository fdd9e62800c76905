"""A base whose weights are spread over processes: 1/N of every layer here, all of one at a time.

PyTorch's FSDP2 cuts the weights by rows, holds this process's, and gathers a layer's. Of it only
`unshard` and `reshard` are used, since the decoder's layers are no modules with a `forward` that
its hooks could follow: when a layer is whole is decided here, forward and backward. On a GPU the
next layer is gathered while one runs; on a CPU a gather needs twice the memory of what it gathers,
so the matrices of a layer are gathered one by one. The columns scaling·B are gathered with the
weight that they stand beside, so each process writes those of its own rows; A, B and the
optimizer's state are whole in every process.

Embeddings are looked up where their rows are, and sent. The head is gathered like a layer; for the
native ops piece by piece, since it is a quarter of a small model.

Every process has to run as many passes, of whatever size, with the same gathers in the same order;
so a pass for which memory runs out is not run again in parts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cqa.kernels.logit_stats import TokenStats
from cqa.kernels.piecewise_head import (
    PIECE_MULTIPLE,
    HeadPieces,
    token_logprobs_of_pieces,
    token_stats_of_pieces,
)
from cqa.kernels.token_logprobs import token_logprobs, token_stats
from cqa.model.memory import ran_out
from cqa.ranks import Ranks, lost

if TYPE_CHECKING:
    from cqa.model.decoder import Decoder
    from cqa.model.layer import Layer

PIECE_BYTES = 1 << 25  # of the head's rows that the native ops have at a time
_M_MMAP_THRESHOLD = -3  # as malloc.h of glibc has it
_KEPT_BYTES = 1 << 20
HINT = "a lower --batch-tokens or --pass-tokens, --dtype bf16, or more processes"

Places = Sequence[tuple[object, str]]  # owners and the names of their tensors


@contextmanager
def _talking(count: int) -> Iterator[None]:
    """Tell a lost rank from memory that ran out."""
    try:
        yield
    except RuntimeError as error:
        if ran_out(error):
            raise
        with lost(count):
            raise


def own_part(n_rows: int, ranks: Ranks) -> tuple[int, int]:
    """Return first and end of the rows that FSDP2 leaves with a rank."""
    height = -(-n_rows // ranks.count)
    first = min(ranks.rank * height, n_rows)
    return first, min(first + height, n_rows)


class Together:
    """Tensors that are whole together: a layer's, or some rows of the embedding or the head.

    Between times their owners hold this process's rows of them.
    """

    def __init__(self, places: Places, ranks: Ranks, device: torch.device) -> None:
        """Allocate this process's rows of tensors that have a shape only, and put them there."""
        from torch.distributed.fsdp import fully_shard

        self._places, self._count = places, ranks.count
        self._module: Any = nn.Module()
        for k, (owner, name) in enumerate(places):
            weight = nn.Parameter(getattr(owner, name), requires_grad=False)
            self._module.register_parameter(f"w{k}", weight)
        fully_shard(self._module, mesh=_mesh(device), reshard_after_forward=True)
        self._module.to_empty(device=device)
        self._own = [getattr(self._module, f"w{k}").to_local() for k, _ in enumerate(places)]
        self._coming: Any = None
        self._put(self._own)

    def _put(self, tensors: Sequence[Tensor]) -> None:
        for (owner, name), tensor in zip(self._places, tensors, strict=True):
            setattr(owner, name, tensor)

    def ask(self) -> None:
        """Begin to gather, unless that is done."""
        if self._coming is None:
            with _talking(self._count):
                self._coming = self._module.unshard(async_op=True)

    def gather(self) -> None:
        """Give the owners the whole tensors."""
        self.ask()
        with _talking(self._count):
            self._coming.wait()
        self._put([getattr(self._module, f"w{k}") for k, _ in enumerate(self._places)])

    def release(self) -> None:
        """Keep this process's rows alone."""
        if self._coming is not None:
            self.gather()  # what was asked for and not taken is in flight
            self._module.reshard()
            self._coming = None
            self._put(self._own)


class _Rows:
    """Some rows of the embedding or the head."""

    def __init__(self, first: int, rows: Tensor) -> None:
        self.first, self.rows = first, rows


class Vocabulary:
    """An embedding or a head (V, D), in pieces whose rows are each spread over the ranks."""

    def __init__(self, table: Tensor, height: int, ranks: Ranks, device: torch.device) -> None:
        """Allocate this process's rows of a table that has a shape only."""
        self.shape, self._height, self._ranks = table.shape, height, ranks
        self._pieces = [
            _Rows(first, rows) for first, rows in zip(
                range(0, table.shape[0], height), table.split(height), strict=True
            )
        ]  # fmt: skip
        sizes = [piece.rows.shape[0] for piece in self._pieces]
        self._units = [Together([(piece, "rows")], ranks, device) for piece in self._pieces]
        self._heights = torch.tensor([-(-size // ranks.count) for size in sizes], device=device)

    def load(self, table: Tensor) -> None:
        """Copy this process's rows from the whole table, which need not be read for that."""
        for piece in self._pieces:
            size = min(self._height, self.shape[0] - piece.first)
            first, end = own_part(size, self._ranks)
            piece.rows.copy_(table[piece.first + first : piece.first + end])

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows (M, D) of ids (M,), each from the rank that has it."""
        import torch.distributed as dist

        n = self._ranks.count
        owner = ids % self._height // self._heights[ids // self._height]
        order = owner.argsort(stable=True)
        counts = owner.bincount(minlength=n)
        asked_of_us = torch.empty_like(counts)
        with _talking(n):
            dist.all_to_all_single(asked_of_us, counts)
            ours, theirs = counts.tolist(), asked_of_us.tolist()
            asked = ids.new_empty(sum(theirs))
            dist.all_to_all_single(asked, ids[order], theirs, ours)
            held = self._held(asked).view(torch.uint8)
            received = held.new_empty(ids.shape[0], held.shape[1])
            dist.all_to_all_single(received, held, ours, theirs)
        found = torch.empty_like(received)
        found[order] = received
        return found.view(self._pieces[0].rows.dtype)

    def _held(self, ids: Tensor) -> Tensor:
        """Return the rows of ids that this process has."""
        place, within = ids // self._height, ids % self._height
        within = within - self._ranks.rank * self._heights[place]
        rows = self._pieces[0].rows
        found = rows.new_empty(ids.shape[0], rows.shape[1])
        for k, piece in enumerate(self._pieces):
            here = place == k
            found[here] = piece.rows[within[here]]
        return found

    @contextmanager
    def whole(self) -> Iterator[Tensor]:
        """Give all rows of a table of one piece."""
        (piece,), (unit,) = self._pieces, self._units
        unit.gather()
        yield piece.rows
        unit.release()

    def pieces(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the first row's number and the rows of every piece; one is there at a time."""
        for piece, unit in zip(self._pieces, self._units, strict=True):
            unit.gather()
            yield piece.first, piece.rows
            unit.release()


class Spread:
    """What of a decoder is spread over processes, and when it is whole.

    Attributes:
        ranks: The processes.
        table: The embedding.
        head: The same, or one of its own.
    """

    def __init__(self, decoder: Decoder, ranks: Ranks) -> None:
        """Spread a decoder whose large weights have a shape only."""
        device, vocab_size = decoder.device, decoder.config.vocab_size
        self.ranks, self._backend = ranks, decoder.backend
        if device.type == "cpu":
            _give_back_at_once()
        height = vocab_size
        if decoder.backend == "native":
            row_bytes = decoder.config.hidden_size * decoder.dtype.itemsize * PIECE_MULTIPLE
            height = max(1, PIECE_BYTES // row_bytes) * PIECE_MULTIPLE
        self.table = Vocabulary(decoder.table, height, ranks, device)
        self.head = self.table
        if decoder.head is not decoder.table:
            self.head = Vocabulary(decoder.head, height, ranks, device)
        self._pieces = HeadPieces(vocab_size, self.head.rows, self.head.pieces)
        self._ahead = device.type == "cuda"
        self._layers = [self._spread(layer, device) for layer in decoder.layers]

    def _spread(self, layer: Layer, device: torch.device) -> list[Together]:
        places: list[tuple[object, str]] = []
        heights = []
        for projection in layer.projections:
            heights.append(projection.weight.shape[0])
            places.append((projection, "weight"))
            if projection.split and projection.low.numel():
                places.append((projection, "low"))
        if layer.experts is not None:
            places += [(layer.experts, "gate_up"), (layer.experts, "down")]
        groups = [places] if self._ahead else [[place] for place in places]
        together = [Together(group, self.ranks, device) for group in groups]
        for projection, height in zip(layer.projections, heights, strict=True):
            projection.hold_rows_from(own_part(height, self.ranks)[0])
        return together

    def run(self, index: int, function: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """Run a layer's function on the residual stream, its weights whole the while.

        They are gathered again before its backward, and released after it.
        """
        self._gather(index, index + 1)
        training = torch.is_grad_enabled()
        if training:
            h = _InBackward.apply(h, partial(self.release, index))  # type: ignore[no-untyped-call]
        h = function(h)
        if training and h.requires_grad:
            h = _InBackward.apply(h, partial(self._gather, index, index - 1))  # type: ignore[no-untyped-call]
        self.release(index)
        return h

    def _gather(self, index: int, later: int) -> None:
        """Make a layer whole, and begin with a later one while it runs."""
        for group in self._layers[index]:
            group.gather()
        if self._ahead and 0 <= later < len(self._layers):
            for group in self._layers[later]:
                group.ask()

    def release(self, index: int) -> None:
        """Keep this process's rows of a layer."""
        for group in self._layers[index]:
            group.release()

    def rest(self) -> None:
        """Release what a backward pass has left whole: its first layer's input has no gradient."""
        self.release(0)

    def token_stats(self, hidden: Tensor, target: Tensor, *, varentropy: bool) -> TokenStats:
        """Return what `cqa.kernels.token_logprobs.token_stats` does of the whole head."""
        if self._backend == "native":
            return token_stats_of_pieces(hidden, self._pieces, target, varentropy=varentropy)
        with self.head.whole() as head:
            return token_stats(hidden, head, target, backend=self._backend, varentropy=varentropy)

    def token_logprobs(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return what `cqa.kernels.token_logprobs.token_logprobs` does of the whole head."""
        if self._backend == "native":
            return token_logprobs_of_pieces(hidden, self._pieces, target)
        with self.head.whole() as head:
            return token_logprobs(hidden, head, target, backend=self._backend)


def _give_back_at_once() -> None:
    """Have freed blocks of some size go back to the system, in this process, from here on.

    glibc keeps those below a bound that it raises to 32 MB by itself: as many layers as a model
    has, which were whole one after the other, would stay in part. Elsewhere there is no such call.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)


def _mesh(device: torch.device) -> Any:
    """Return all ranks as FSDP2 takes them."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    everyone = dist.group.WORLD
    assert everyone is not None, "the processes have joined"
    return DeviceMesh.from_group(everyone, device.type)


class _InBackward(torch.autograd.Function):
    """The identity; backward calls what it was given."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, call: Callable[[], None]) -> Tensor:
        ctx.call = call
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        ctx.call()
        return dh, None
