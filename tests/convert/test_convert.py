"""A converted GGUF is the model that transformers reads of it; what is none gets a message."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cqa_fast.main import main
from helpers import tiny_checkpoint
from model.common import edit_tensors
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cqa.convert.gguf_file import GgufFile
from cqa.convert.gguf_gemma import attention_scalar
from cqa.convert.run import convert
from cqa.errors import ConfigError, CqaError, ModelError
from cqa.model.conversion import conversion_text, read_conversion

IDS = torch.tensor([[3, 17, 150, 9, 60, 61, 2, 199, 44, 44, 8]])
SIZES = {  # rows of whole blocks
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "num_hidden_layers": 2, "vocab_size": 260,
}  # fmt: skip
KINDS = gguf.GGMLQuantizationType
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
GEMMA = {
    "num_hidden_layers": 7, "vocab_size": 283, "query_pre_attn_scalar": 32,
    "sliding_window": 6, "tie_word_embeddings": True,
}  # fmt: skip
MODELS = {
    "llama": ("llama", {"tie_word_embeddings": True}, KINDS.Q4_1),
    "llama-untied": ("llama", {"tie_word_embeddings": False}, KINDS.Q8_0),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}, KINDS.Q5_0),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}, KINDS.BF16),
    "gemma3": ("gemma3_text", GEMMA, KINDS.Q8_0),
}


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """The order in which GGUF's Llama stores the rows of q and k."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path: Path, checkpoint: Path, kind: KINDS = KINDS.F32, **fields: object) -> Path:
    """Write a checkpoint as GGUF, as llama.cpp's own converter lays it out.

    Args:
        path: The file to write.
        checkpoint: The model folder.
        kind: What its matrices are stored as.
        fields: More keys of the architecture, `__` for a dot; a tensor's name for an array.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    arch, layers = config["model_type"].removesuffix("_text"), config["num_hidden_layers"]
    rope = config["rope_parameters"]
    out = gguf.GGUFWriter(path, arch)
    out.add_context_length(config["max_position_embeddings"])
    out.add_block_count(layers)
    out.add_embedding_length(config["hidden_size"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(config["num_attention_heads"])
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_key_length(config["head_dim"])
    out.add_rope_dimension_count(config["head_dim"])
    out.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])
    if arch == "gemma3":
        if "attention__sliding_window" not in fields:
            out.add_sliding_window(config["sliding_window"])
        add_pieces(out, config["vocab_size"])
    else:
        add_tokenizer(out, config["vocab_size"])
    for key, value in fields.items():
        if isinstance(value, np.ndarray):
            out.add_tensor(key.replace("__", "."), value)
        elif isinstance(value, str):
            out.add_string(f"{arch}.{key.replace('__', '.')}", value)
        elif isinstance(value, list):
            out.add_array(f"{arch}.{key.replace('__', '.')}", value)
        elif isinstance(value, float):
            out.add_float32(f"{arch}.{key.replace('__', '.')}", value)
        else:
            out.add_uint32(f"{arch}.{key.replace('__', '.')}", value)
    number = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, layers)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        module, _, part = name.rpartition(".")
        values = tensor.float().numpy()
        for which, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if arch == "llama" and which in name:
                values = in_pairs(values, config[heads])
        if arch == "gemma3" and module.endswith("norm"):
            values = values + 1
        stored = kind if values.ndim == 2 else KINDS.F32
        out.add_tensor(
            f"{names.get_name(module)}.{part}", gguf.quantize(values, stored), raw_dtype=stored
        )
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def add_tokenizer(out: gguf.GGUFWriter, size: int) -> None:
    """A byte-level tokenizer: control tokens, letters, an added token, and padding."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = sorted(bytes_to_unicode().values())
    assert size == len(letters) + 4
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list(["<s>", "</s>", *letters, "Ġa", "<think>"])
    out.add_token_types([3, 3, *[1] * len(letters), 1, 4])
    out.add_token_merges(["Ġ a"])
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)
    out.add_add_bos_token(True)
    out.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def add_pieces(out: gguf.GGUFWriter, size: int) -> None:
    """A tokenizer of pieces, as Gemma's: control tokens, runs of spaces and lines, bytes, words."""
    words = ["▁", "a", "b", "n", "▁a", "an", "▁an", "▁b", "na", "▁ban", "ana", "▁banana"]
    tokens = ["<pad>", "</s>", "<s>", "<unk>", "<mask>", "<start_of_turn>", "\n\n", "  ", "   "]
    types = [3, 3, 3, 3, 3, 3, 4, 4, 4]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    padding = [f"<unused{k}>" for k in range(size - len(tokens) - 256 - len(words))]
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list([*tokens, *padding, *bytes_, *words])
    out.add_token_scores([0.0] * size)
    out.add_token_types([*types, *[3] * len(padding), *[6] * 256, *[1] * len(words)])
    out.add_bos_token_id(2)
    out.add_eos_token_id(1)
    out.add_unk_token_id(3)
    out.add_pad_token_id(0)
    out.add_add_bos_token(True)
    out.add_add_space_prefix(False)
    out.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of transformers, tied."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_checkpoint(folder, "llama", **SIZES, tie_word_embeddings=True)
    return folder


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_and_tokens_are_those_of_transformers_own_reading(tmp_path, name):
    architecture, changes, kind = MODELS[name]
    taken = {"qwen2": 16, "qwen3": 128, "gemma3_text": 256}  # for granted there, as a head's size
    if architecture in taken:
        changes = changes | {"head_dim": taken[architecture]}
    checkpoint = tmp_path / "hf"
    tiny_checkpoint(checkpoint, architecture, **{**SIZES, **changes})
    file = write_gguf(tmp_path / "model.gguf", checkpoint, kind)
    found = convert(file, tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    text = "a banana<think> for </s>   tea\n\n  a banan"
    one, other = (
        AutoTokenizer.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf"),
    )
    assert one(text).input_ids == other(text).input_ids
    assert one.chat_template == other.chat_template
    ends = (2, 1) if name == "gemma3" else (0, 1)
    assert (one.bos_token_id, one.eos_token_id) == ends
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == ends
    assert found.conversion["tensors_by_type"][kind.name] == sum(
        tensor.ndim == 2 for tensor in load_file(checkpoint / "model.safetensors").values()
    )


@torch.no_grad()
def test_without_quantisation_it_is_the_checkpoint_that_was_written(tmp_path, llama):
    out = convert(write_gguf(tmp_path / "model.gguf", llama), tmp_path / "out").out
    before, after = load_file(llama / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_conversion(out)["quantised"] is False
    rounded = convert(tmp_path / "model.gguf", tmp_path / "bf16", dtype="bf16").out
    halved = load_file(rounded / "model.safetensors")
    assert all(torch.equal(before[name].bfloat16(), halved[name]) for name in before)
    assert json.loads((rounded / "config.json").read_text())["dtype"] == "bfloat16"
    assert "sha256" in conversion_text(read_conversion(rounded))


@torch.no_grad()
def test_rotation_that_transformers_passes_over_is_kept(tmp_path):
    checkpoint = tmp_path / "hf"
    tiny_checkpoint(checkpoint, "llama", **SIZES, rope_parameters=LLAMA3)
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    plain = 1 / 10_000.0 ** (torch.arange(0, 32, 2).double() / 32)
    factors = (plain / theirs.model.rotary_emb.inv_freq.double()).float().numpy()
    length = {"rope__scaling__original_context_length": 64}
    file = write_gguf(tmp_path / "m.gguf", checkpoint, rope_freqs__weight=factors, **length)
    ours = AutoModelForCausalLM.from_pretrained(
        convert(file, tmp_path / "out").out, dtype=torch.float32
    )
    ids = IDS.repeat(1, 8)
    assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-4)

    linear = write_gguf(
        tmp_path / "l.gguf", checkpoint, rope__scaling__type="linear", rope__scaling__factor=4.0
    )
    rope = json.loads((convert(linear, tmp_path / "l").out / "config.json").read_text())
    assert rope["rope_parameters"]["rope_type"] == "linear"
    assert rope["rope_parameters"]["factor"] == 4.0

    odd = write_gguf(tmp_path / "o.gguf", checkpoint, rope_freqs__weight=factors[::-1].copy())
    with pytest.raises(ModelError, match="frequencies of Llama 3"):
        convert(odd, tmp_path / "odd")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of Gemma 3 whose rotations both differ from the defaults."""
    return tiny_checkpoint(
        tmp_path_factory.mktemp("gemma"), "gemma3_text", **{**SIZES, **GEMMA},
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 5e4, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    )  # fmt: skip


@torch.no_grad()
def test_gemma_is_the_checkpoint_that_was_written(tmp_path, gemma):
    """Its norms, windows, both rotations and the scaling that transformers passes over."""
    file = write_gguf(
        tmp_path / "m.gguf", gemma, rope__scaling__type="linear", rope__scaling__factor=8.0,
        rope__freq_base_swa=500.0,
    )  # fmt: skip
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (convert(file, tmp_path / "out").out, gemma)
    )
    difference = (ours(IDS).logits - theirs(IDS).logits).abs().max()
    assert difference < 1e-4  # 1 + w was rounded in the file
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["layer_types"] == ["sliding_attention"] * 5 + ["full_attention"] + [
        "sliding_attention"
    ]


@pytest.mark.parametrize(("layers", "scalar"), [(18, 32), (62, 16)])
def test_attention_of_the_largest_gemma_is_scaled_by_its_width(layers, scalar):
    fields = {"gemma3.attention.key_length": 32}
    file = GgufFile(Path("m.gguf"), "gemma3", fields, {})
    config = {"num_hidden_layers": layers, "hidden_size": 64, "num_attention_heads": 4}
    assert attention_scalar(file, config) == scalar


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"final_logit_softcapping": 30.0}, "gemma3.final_logit_softcapping: 30.0"),
        ({"attention__sliding_window_pattern": 3}, "gemma3.attention.sliding_window_pattern: 3"),
        ({"attention__sliding_window_pattern": [1, 0] * 3}, "sliding_window_pattern: 6 values"),
        ({"rope__freq_base_swa": -1.0}, "expected gemma3.rope.freq_base_swa above 0, got -1.0"),
        ({"attention__sliding_window": 0}, "expected gemma3.attention.sliding_window above 0"),
    ],
    ids=["cap", "pattern", "patterns", "theta", "window"],
)
def test_another_kind_of_gemma_is_refused(tmp_path, gemma, fields, said):
    file = write_gguf(tmp_path / "model.gguf", gemma, **fields)
    with pytest.raises(ModelError) as caught:
        convert(file, tmp_path / "out")
    assert said in caught.value.message
    assert not (tmp_path / "out").exists()


def test_every_cut_and_many_a_wrong_byte_get_one_message_and_leave_nothing(tmp_path, llama):
    whole = write_gguf(tmp_path / "model.gguf", llama, KINDS.Q8_0).read_bytes()
    file, out = tmp_path / "bad.gguf", tmp_path / "out"
    rng = np.random.default_rng(3)
    head = len(whole) - sum(t.stat().st_size for t in llama.glob("*.safetensors")) // 4
    for size in (0, 3, 23, 24, 40, 200, head // 2, len(whole) // 2, len(whole) - 40):
        file.write_bytes(whole[:size])
        with pytest.raises(ModelError) as caught:
            convert(file, out)
        assert str(file) in str(caught.value)
        assert size < 24 or "byte" in caught.value.message
    for _ in range(30):
        damaged = bytearray(whole)
        damaged[int(rng.integers(0, 3000))] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        try:
            convert(file, out)
        except CqaError as error:
            assert error.exit_code in (3, 4, 6), error  # noqa: PT017
        shutil.rmtree(out, ignore_errors=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.gguf", "model.gguf"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"expert_count": 8}, "llama.expert_count: 8"),
        ({"attention__sliding_window": 16}, "llama.attention.sliding_window: 16"),
        ({"rope__scaling__type": "longrope"}, "rope type 'longrope'"),
        ({"blk__0__attn_sinks__weight": np.ones(4, np.float32)}, "unexpected blk.0.attn_sinks"),
    ],
    ids=["experts", "window", "rope", "tensor"],
)
def test_another_kind_of_model_is_refused(tmp_path, llama, fields, said):
    file = write_gguf(tmp_path / "model.gguf", llama, **fields)
    with pytest.raises(ModelError) as caught:
        convert(file, tmp_path / "out")
    assert said in caught.value.message
    assert not (tmp_path / "out").exists()


def test_architectures_parts_and_weights_that_are_not_finite_are_refused(tmp_path, llama):
    other = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    part = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    part.add_uint16("split.count", 3)
    for out in (other, part):
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
    checkpoint = tmp_path / "nan"
    shutil.copytree(llama, checkpoint)
    edit_tensors(checkpoint, lambda t: t["model.layers.1.mlp.up_proj.weight"].fill_(torch.nan))
    write_gguf(tmp_path / "nan.gguf", checkpoint)
    for name, said in (
        ("other", "got architecture: 'mamba'"),
        ("part", "got one of 3 parts"),
        ("nan", "others in blk.1.ffn_up.weight at byte"),
        ("none", "No such file"),
    ):
        with pytest.raises(ModelError) as caught:
            convert(tmp_path / f"{name}.gguf", tmp_path / "out")
        assert said in caught.value.message
        assert caught.value.exit_code == 4
    assert not (tmp_path / "out").exists()


def test_the_command_writes_once_and_says_what_it_read(tmp_path, llama):
    file, out = write_gguf(tmp_path / "model.gguf", llama, KINDS.Q8_0), tmp_path / "out"
    done = CliRunner().invoke(main, ["convert", str(file), str(out), "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["tensors_by_type"]["Q8_0"] == 15
    again = CliRunner().invoke(main, ["convert", str(file), str(out)])
    assert again.exit_code == ConfigError.exit_code
    assert "got one that exists" in again.stderr
