"""States of options equal those of transformers at every layer, and do not depend on the batch."""

import random
from pathlib import Path

import pytest
import torch
from helpers import DEMO, tiny_checkpoint
from model.cases import CASES
from model.common import CPU
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from cqa.kernels.backend import native_problem
from cqa.layout import Tree, pack_whole_options
from cqa.model.adapter import read_adapter, read_spec
from cqa.model.decoder import Decoder
from cqa.model.forward_pass import Observer
from cqa.model.load import load_model
from cqa.model.lora import attach, widest
from cqa.model.option_states import option_states

pytestmark = pytest.mark.filterwarnings(  # PEFT asks transformers by an older name
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)
NAMES = [
    "qwen2", "qwen3", "llama-biases", "llama-one-layer", "mistral-sliding", "olmo2",
    "smollm3-sliding-biases", "gemma3", "gemma3-scaled", "qwen3-moe-mixed",
]  # fmt: skip


@pytest.fixture(scope="module", params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and (problem := native_problem()):
        pytest.skip(f"no native ops: {problem}")
    return request.param


def some_trees(vocabulary: int) -> list[Tree]:
    rng = random.Random(4)

    def text(n: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(vocabulary), k=n))

    shapes = [(30, (1, 7, 20)), (1, (12, 2)), (17, (9,)), (40, (1, 1))]
    return [Tree(text(depth), tuple(map(text, lengths))) for depth, lengths in shapes]


@torch.no_grad()
def their_states(
    model: torch.nn.Module, context: tuple[int, ...], option: tuple[int, ...]
) -> Tensor:
    """Mean over the option and its last token, by layer, the last layer's before the norm."""
    inner = model.base_model.model.model if hasattr(model, "peft_config") else model.model
    last = []
    hook = inner.norm.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    out = model(torch.tensor([context + option]), use_cache=False, output_hidden_states=True)
    hook.remove()
    states = torch.cat((*out.hidden_states[:-1], *last)).double()[:, len(context) :]
    assert not torch.allclose(out.hidden_states[-1][0, -1].double(), states[-1, -1])
    return torch.stack((states.mean(1), states[:, -1]), 1)


def assert_equal_to_theirs(decoder: Decoder, model: torch.nn.Module) -> None:
    trees = some_trees(decoder.config.vocab_size)
    for tree, states in zip(trees, option_states(decoder, trees), strict=True):
        for option, actual in zip(tree.options, states, strict=True):
            expected = their_states(model, tree.context, option)
            assert actual.dtype == torch.float32
            size = expected.square().mean((1, 2), keepdim=True).sqrt()  # of a layer's numbers
            torch.testing.assert_close(actual.double() / size, expected / size, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_states_equal_those_of_transformers(name, backend, tmp_path):
    architecture, changes = CASES[name]
    folder = tiny_checkpoint(tmp_path, architecture, **changes)
    decoder = load_model(folder, device=CPU, dtype=torch.float32, backend=backend).decoder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert_equal_to_theirs(decoder, model)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_states_under_an_adapter_equal_those_of_peft(name, backend, tmp_path):
    architecture, changes = CASES[name]
    folder = tiny_checkpoint(tmp_path / "base", architecture, **changes)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)
    model = get_peft_model(model, settings).eval()
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(tmp_path / "adapter"))
    columns = widest([read_spec(tmp_path / "adapter")])
    decoder = load_model(
        folder, device=CPU, dtype=torch.float32, backend=backend, rank_columns=columns
    ).decoder
    trees = some_trees(decoder.config.vocab_size)
    base = option_states(decoder, trees)[0][2]
    attach(decoder, read_adapter(tmp_path / "adapter", decoder))
    changed = (option_states(decoder, trees)[0][2] - base).abs().amax((1, 2))
    assert changed[0] == 0
    assert (changed[1:] > 1e-2).all()
    assert_equal_to_theirs(decoder, model)


@pytest.mark.parametrize("name", ["qwen2", "gemma3", "demo"])
def test_bits_do_not_depend_on_what_else_is_in_the_pass(name, tmp_path):
    folder = DEMO / "model" if name == "demo" else tiny(tmp_path, name)
    decoder = load_model(folder, device=CPU, dtype=torch.float32).decoder
    trees = some_trees(decoder.config.vocab_size)
    together = option_states(decoder, trees)
    backwards = option_states(decoder, trees[::-1])[::-1]
    for i, tree in enumerate(trees):
        for j, expected in enumerate(together[i]):
            (alone,), *_ = option_states(decoder, [Tree(tree.context, tree.options[j : j + 1])])
            assert torch.equal(alone, expected)
            assert torch.equal(backwards[i][j], expected)


def tiny(folder: Path, name: str) -> Path:
    architecture, changes = CASES[name]
    return tiny_checkpoint(folder, architecture, **changes)


def test_looking_on_changes_no_number_of_the_pass(tmp_path):
    decoder = load_model(tiny(tmp_path, "qwen2"), device=CPU, dtype=torch.float32).decoder
    batch, _ = pack_whole_options(some_trees(decoder.config.vocab_size))
    seen: list[Tensor] = []

    class Keeping(Observer):
        def finished(self, layer: int, h: Tensor) -> None:
            seen.append(h)

    plain, observed = (decoder.hidden_for_scoring(batch, observer=o) for o in (None, Keeping()))
    assert torch.equal(plain, observed)
    assert [h.shape[0] for h in seen] == [batch.n_rows] * 2 + [len(batch.kept)]
