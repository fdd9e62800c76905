"""What the tests of this folder share: folders to spoil, and the comparison with transformers."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cqa.errors import ModelError
from cqa.kernels.token_logprobs import token_logprobs
from cqa.layout import pack_documents
from cqa.model.decoder import Decoder
from cqa.model.load import BaseModel, load_model

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def load(folder: Path) -> BaseModel:
    """Load a folder in fp32."""
    return load_model(folder, device=CPU, dtype=torch.float32)


def edit_config(folder: Path, **changes: Any) -> None:
    """Change settings; a setting of `...` is removed."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of the weights' one file."""
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    """Load a spoiled model; return what the user reads."""
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert caught.value.exit_code == 4
    assert str(folder) in str(caught.value.where)
    return caught.value.message


@torch.no_grad()
def our_logprobs(decoder: Decoder, documents: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-probability of every token but the first of each document."""
    batch = pack_documents([(tuple(ids), [True] * len(ids)) for ids in documents])
    return token_logprobs(decoder.hidden(batch), decoder.head, batch.target)


@torch.no_grad()
def their_logprobs(model: torch.nn.Module, documents: Sequence[Sequence[int]]) -> Tensor:
    """Return the same by a model of transformers or PEFT."""
    parts = []
    for ids in map(torch.tensor, documents):
        logp = model(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        parts.append(logp.gather(1, ids[1:, None]).squeeze(1))
    return torch.cat(parts)
