"""A copy on the host of what a checkpoint is written from, so that training can go on meanwhile."""

from __future__ import annotations

import torch

from cqa.model.lora import TrainableLora

BUFFERS = ("param", "exp_avg", "exp_avg_sq")  # of AdamState: parameters and both moments


class Snapshot:
    """The buffers of an adapter in training, taken again and again into the same memory.

    On a GPU that memory is pinned, and the copy is a part of the device's work: the host goes on at
    once, and so does the device with the next step when the copy is done.

    Attributes:
        spec: The adapter's definition.
        tensors: The flat buffers by the names in `BUFFERS`, fp32.
        weights: A and B of every adapted module, parts of the flat parameters.
    """

    def __init__(self, lora: TrainableLora) -> None:
        """Allocate the memory: three numbers of 4 bytes for each that is trained."""
        self._lora = lora
        on_cuda = lora.decoder.device.type == "cuda"
        self._copied = torch.cuda.Event() if on_cuda else None
        self.spec = lora.spec
        self.tensors = {
            name: torch.empty_like(getattr(lora.state, name), device="cpu", pin_memory=on_cuda)
            for name in BUFFERS
        }
        flat = self.tensors["param"]
        self.weights = {
            key: (
                flat.as_strided(a.shape, a.stride(), a.storage_offset()),
                flat.as_strided(b.shape, b.stride(), b.storage_offset()),
            )
            for key, (a, b) in lora.weights.items()
        }

    @torch.no_grad()
    def take(self) -> None:
        """Copy the buffers as they are after the steps so far."""
        for name, copy in self.tensors.items():
            copy.copy_(getattr(self._lora.state, name), non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def wait(self) -> None:
        """Wait until the copy is there; call it before anything of it is read."""
        if self._copied is not None:
            self._copied.synchronize()
