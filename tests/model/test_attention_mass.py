"""Attention on y equals that of transformers' attention maps, and its parts are a whole."""

import gc
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers import tiny_checkpoint
from model.cases import CASES
from model.common import CPU
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

import cqa.model.attention_mass as module
from cqa.kernels.backend import native_problem
from cqa.layout import Tree
from cqa.model.adapter import read_adapter, read_spec
from cqa.model.attention_mass import option_attention
from cqa.model.decoder import Decoder
from cqa.model.load import load_model
from cqa.model.lora import attach, widest

pytestmark = pytest.mark.filterwarnings(  # PEFT asks transformers by an older name
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)
NAMES = [
    "qwen2", "qwen3", "llama-biases", "llama-no-groups", "mistral-sliding", "olmo2",
    "smollm3-sliding-biases", "gemma3-scaled", "qwen3-moe-mixed",
]  # fmt: skip
RNG = random.Random(4)
TREES = [
    Tree(
        tuple(RNG.choices(range(211), k=depth)),
        tuple(tuple(RNG.choices(range(211), k=n)) for n in lengths),
    )
    for depth, lengths in [(30, (1, 7, 20)), (2, (12, 2)), (17, (9,))]
]
Y = [(3, 28), (0, 2), (0, 17)]


@pytest.fixture(scope="module", params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and (problem := native_problem()):
        pytest.skip(f"no native ops: {problem}")
    return request.param


def eager(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def tiny(folder: Path, name: str) -> Path:
    architecture, changes = CASES[name]
    return tiny_checkpoint(folder, architecture, **changes)


def effective_weight(projection: torch.nn.Module) -> Tensor:
    """W, or W + scaling·B·A where PEFT has wrapped it."""
    weight = getattr(projection, "base_layer", projection).weight.double()
    if not hasattr(projection, "lora_A"):
        return weight
    a, b = (part["default"].weight.double() for part in (projection.lora_A, projection.lora_B))
    return weight + projection.scaling["default"] * b @ a


@torch.no_grad()
def from_their_maps(
    model: torch.nn.Module, context: tuple[int, ...], option: tuple[int, ...], y: tuple[int, int]
) -> dict[str, Tensor]:
    """The same from attention maps and values of transformers, head by head and key by key."""
    inner = model.base_model.model.model if hasattr(model, "peft_config") else model.model
    values: list[Tensor] = []
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda _, args, out: values.append(out[0]))
        for layer in inner.layers
    ]
    out = model(torch.tensor([context + option]), use_cache=False, output_attentions=True)
    for hook in hooks:
        hook.remove()
    shares, ratios, uniforms, in_sight = [], [], [], []
    of_y = torch.zeros(len(context + option))
    of_y[slice(*y)] = 1
    for layer, attention, v in zip(inner.layers, out.attentions, values, strict=True):
        a = attention[0, :, len(context) :].double()  # (heads, rows, keys)
        n_heads, n_rows, n_keys = a.shape
        seen = (a > 0).any(0).double()
        per_key = a[..., None] * heads_of(v.double(), n_heads, layer)[:, None]
        weight = effective_weight(layer.self_attn.o_proj).unflatten(1, (n_heads, -1))
        added = torch.einsum("dhe,hrke->hrkd", weight, per_key)  # by head, row and key
        o = added.sum((0, 2))
        contribution = torch.einsum("hrkd,rd->hrk", added, o) / o.square().sum(1)[:, None]
        torch.testing.assert_close(contribution.sum((0, 2)), torch.ones(n_rows).double())
        rest = torch.ones(n_keys).double()
        rest[0] = 0
        masses = torch.stack([a @ of_y.double(), a @ (of_y * rest) / (a @ rest)], -1)
        uniform = torch.stack([seen @ of_y.double() / seen.sum(1),
                               seen @ (of_y * rest) / (seen @ rest)], -1)  # fmt: skip
        shares.append(torch.cat((masses, (contribution @ of_y.double())[..., None]), -1).mean(1))
        ratio = (masses / uniform).log()
        ratios.append(ratio.nanmean(1))
        uniforms.append(uniform)
        in_sight.append(seen @ of_y.double() / of_y.sum())
    return {
        "shares": torch.stack(shares),
        "log_ratio": torch.stack(ratios),
        "uniform": torch.stack(uniforms),
        "in_sight": torch.stack(in_sight).mean(1),
    }


def heads_of(v: Tensor, n_heads: int, layer: torch.nn.Module) -> Tensor:
    """Values (keys, kv_heads · head_dim) to (heads, keys, head_dim)."""
    heads = v.unflatten(1, (-1, layer.self_attn.head_dim)).transpose(0, 1)
    return heads.repeat_interleave(n_heads // heads.shape[0], 0)


def assert_equal_to_their_maps(decoder: Decoder, model: torch.nn.Module) -> None:
    for tree, y, found in zip(TREES, Y, option_attention(decoder, TREES, Y), strict=True):
        for option, actual in zip(tree.options, found, strict=True):
            expected = from_their_maps(model, tree.context, option, y)
            for name, values in expected.items():
                atol = 1e-4 if name == "log_ratio" else 2e-5
                torch.testing.assert_close(
                    getattr(actual, name), values.double(), rtol=1e-4, atol=atol, equal_nan=True
                )


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_the_maps_of_transformers(name, backend, tmp_path):
    folder = tiny(tmp_path, name)
    decoder = load_model(folder, device=CPU, dtype=torch.float32, backend=backend).decoder
    assert_equal_to_their_maps(decoder, eager(folder))


@pytest.fixture
def adapted(tmp_path: Path, backend: str) -> tuple[Decoder, torch.nn.Module]:
    """A model with biases under an adapter, here and in PEFT."""
    folder = tiny(tmp_path / "base", "llama-biases")
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)
    model = get_peft_model(eager(folder), settings).eval()
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(tmp_path / "adapter"))
    decoder = load_model(
        folder,
        device=CPU,
        dtype=torch.float32,
        backend=backend,
        rank_columns=widest([read_spec(tmp_path / "adapter")]),
    ).decoder
    attach(decoder, read_adapter(tmp_path / "adapter", decoder))
    return decoder, model


def test_equal_to_the_maps_of_peft(adapted):
    assert_equal_to_their_maps(*adapted)


def test_contributions_of_all_heads_and_keys_sum_to_one(adapted, monkeypatch):
    decoder, _ = adapted
    sums = []

    def summed(mixed: Tensor, *output: object) -> Tensor:
        found = contributions(mixed, *output)
        sums.append(found.sum((1, 2)))
        return found

    contributions = module.contributions
    monkeypatch.setattr(module, "contributions", summed)
    option_attention(decoder, TREES, Y)
    assert len(sums) == decoder.config.n_layers * sum(len(tree.options) for tree in TREES)
    torch.testing.assert_close(torch.cat(sums), torch.ones(3 * 51).double(), rtol=0, atol=1e-5)


def test_uniform_attention_has_the_mass_of_the_share_of_visible_keys(backend, tmp_path):
    folder = tiny(tmp_path, "mistral-sliding")
    decoder = load_model(folder, device=CPU, dtype=torch.float32, backend=backend).decoder
    for layer in decoder.layers:
        layer.qkv.weight[layer.qkv.member("q").rows] = 0
    decoder.layers[0].window = None
    for tree, (start, stop), found in zip(
        TREES, Y, option_attention(decoder, TREES, Y), strict=True
    ):
        depth = len(tree.context)
        for option, result in zip(tree.options, found, strict=True):
            positions = range(depth + 1, depth + 1 + len(option))  # from 1
            whole = torch.tensor([(stop - start) / position for position in positions])
            n_rest = stop - max(start, 1)
            rest = torch.tensor([n_rest / (position - 1) for position in positions])
            expected = torch.stack((whole, rest), -1).double()
            torch.testing.assert_close(result.uniform[0], expected)
            near = [
                sum(start <= j < stop for j in range(position - 8, position)) / 8
                for position in positions
                if position > 9  # the first token is out of sight
            ]
            assert result.uniform[1, len(positions) - len(near) :, 0].tolist() == pytest.approx(
                near
            )
            means = result.uniform.mean(1)[:, None].expand(-1, 6, -1)
            torch.testing.assert_close(result.shares[..., :2], means, rtol=1e-5, atol=1e-7)
            ratio = result.log_ratio.nan_to_num(0.0)
            torch.testing.assert_close(ratio, torch.zeros_like(ratio), rtol=0, atol=2e-6)
            assert result.in_sight[0] == 1


def test_what_no_row_sees_has_no_ratio(tmp_path):
    decoder = load_model(tiny(tmp_path, "mistral-sliding"), device=CPU, dtype=torch.float32).decoder
    (far,) = option_attention(decoder, TREES[:1], [(1, 9)])
    for result in far:
        assert (result.shares == 0).all()
        assert (result.uniform == 0).all()
        assert result.log_ratio.isnan().all()
        assert result.in_sight.tolist() == [0.0] * 3


def test_what_is_held_does_not_grow_from_layer_to_layer(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen2", num_hidden_layers=6)
    decoder = load_model(folder, device=CPU, dtype=torch.float32).decoder
    held_bytes = []
    inside = decoder.hidden_for_scoring

    def watched(batch, observer):
        look = observer.attended

        def attended(layer: int, *qkv: Tensor) -> None:
            look(layer, *qkv)
            tensors = {id(x): x for x in gc.get_objects() if type(x) is Tensor}
            storages = {x.untyped_storage().data_ptr(): x.nbytes for x in tensors.values()}
            held_bytes.append(sum(storages.values()))

        observer.attended = attended
        return inside(batch, observer=observer)

    decoder.hidden_for_scoring = watched
    option_attention(decoder, TREES, Y)
    n_options = sum(len(tree.options) for tree in TREES)
    results = n_options * 6 * 5 * 8  # of a layer: three shares and two ratios of every head
    growth = [b - a for a, b in pairwise(held_bytes[1:-1])]
    assert growth
    assert max(growth) <= results


@pytest.mark.parametrize("name", ["qwen2", "mistral-sliding"])
def test_bits_do_not_depend_on_what_else_is_in_the_pass(name, tmp_path):
    decoder = load_model(tiny(tmp_path, name), device=CPU, dtype=torch.float32).decoder
    together = option_attention(decoder, TREES, Y)
    for tree, y, expected in zip(TREES, Y, together, strict=True):
        for i, one in enumerate(expected):
            alone = Tree(tree.context, tree.options[i : i + 1])
            ((found,),) = option_attention(decoder, [alone], [y])
            assert torch.equal(found.shares, one.shares)


@pytest.mark.parametrize("y", [(0, 1), (5, 5), (-1, 4), (2, 31)])
def test_y_outside_its_context_or_without_a_token_is_refused(y, tmp_path):
    decoder = load_model(tiny(tmp_path, "qwen2"), device=CPU, dtype=torch.float32).decoder
    with pytest.raises(ValueError, match=f"30 tokens.*got {y[0]} up to {y[1]}"):
        option_attention(decoder, TREES[:1], [y])
