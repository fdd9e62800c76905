"""Every architecture's gradients equal those of transformers and PEFT, by autograd."""

import random

import pytest
import torch
from helpers import tiny_checkpoint
from model.test_decoder_parity import CASES
from peft import PeftModel
from transformers import AutoModelForCausalLM

from cqa.errors import ModelError
from cqa.kernels.backend import native_problem
from cqa.kernels.token_logprobs import token_logprobs
from cqa.layout import pack_documents
from cqa.model.adapter import module_name, write_adapter
from cqa.model.load import load_model
from cqa.model.lora import LoraSpec, TrainableLora
from cqa.model.projection import MODULES
from cqa.train.config import TrainConfig
from cqa.train.plan import make_plan

pytestmark = pytest.mark.filterwarnings(  # PEFT asks transformers by an older name
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)

SPEC = LoraSpec(4, 8.0, True, MODULES)
CPU = torch.device("cpu")


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize(
    "name", ["olmo2-biases-tied", "smollm3", "smollm3-sliding-biases", "gemma3", "gemma3-scaled"]
)
def test_gradients_equal_those_of_peft(name, backend, tmp_path):
    if backend == "native" and (problem := native_problem()):
        pytest.skip(f"no native ops: {problem}")
    architecture, changes = CASES[name]
    base = tiny_checkpoint(tmp_path / "base", architecture, **changes)
    room = SPEC.rank_columns()
    decoder = load_model(
        base, device=CPU, dtype=torch.float32, rank_columns=room, backend=backend
    ).decoder
    lora = TrainableLora(decoder, SPEC, seed=3)
    noise = torch.randn(lora.n_params, generator=torch.Generator().manual_seed(0))
    lora.state.param.copy_(noise / 10)
    lora.after_step()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(adapter, SPEC, lora.weights, "base", 0.0)

    texts = [tuple(random.Random(i).choices(range(211), k=n)) for i, n in enumerate((40, 25))]
    batch = pack_documents([(ids, [True] * len(ids)) for ids in texts])
    (-token_logprobs(decoder.hidden(batch), decoder.head, batch.target).sum()).backward()

    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(theirs, adapter, is_trainable=True).eval()
    for ids in map(torch.tensor, texts):
        logp = theirs(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        (-logp.gather(1, ids[1:, None]).sum()).backward()
    expected = {k.replace(".default.weight", ""): p.grad for k, p in theirs.named_parameters()}
    for (layer, module), pair in lora.weights.items():
        for tensor, part in zip(pair, "AB", strict=True):
            start = tensor.storage_offset()
            ours = lora.state.grad[start : start + tensor.numel()].view(tensor.shape)
            grad = expected[f"base_model.model.{module_name(layer, module)}.lora_{part}"]
            assert grad.abs().max() > 1e-3
            torch.testing.assert_close(ours, grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()))


def test_a_mixture_of_experts_is_scored_and_not_trained(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", *CASES["qwen3-moe"][:1], **CASES["qwen3-moe"][1])
    config = TrainConfig(model=str(base), data=(tmp_path / "no.jsonl",), out=tmp_path / "run")
    with pytest.raises(ModelError, match="expected a model without experts, got qwen3_moe"):
        make_plan(config)
