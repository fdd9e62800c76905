"""Adapters for other programs: what they compute there is what the adapter computes here."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import tiny_checkpoint, tiny_model, tiny_run
from model.common import CPU, our_logprobs, their_logprobs
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cqa.errors import ConfigError, ModelError
from cqa.model import export
from cqa.model.adapter_files import is_adapter
from cqa.model.checkpoint import copy_file
from cqa.model.export import export_merged, export_plain_alpha
from cqa.model.load import load_model

pytestmark = pytest.mark.filterwarnings(  # PEFT asks transformers by an older name
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)

TEXT = [list(range(3, 60)), list(range(100, 200, 3))]
SETTINGS = {
    "rslora": {"target_modules": "all-linear", "r": 3, "lora_alpha": 7, "use_rslora": True},
    "plain": {"target_modules": ["q_proj"], "r": 4, "lora_alpha": 8},
    "patterns": {
        "target_modules": ["q_proj", "up_proj", "down_proj"], "r": 4, "use_rslora": True,
        "rank_pattern": {r".*1\.mlp\.up_proj": 9}, "alpha_pattern": {"down_proj": 2.5},
    },
}  # fmt: skip


def hugging_face(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def adapted(base: Path, adapter: Path) -> PeftModel:
    return PeftModel.from_pretrained(hugging_face(base), str(adapter)).eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("base"), "qwen2", max_shard_size="60KB")


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS)
def adapter(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> Path:
    """An adapter of PEFT with values everywhere."""
    model = get_peft_model(hugging_face(base), LoraConfig(task_type="CAUSAL_LM", **request.param))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 10
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def test_plain_alpha_gives_the_same_to_a_reader_that_knows_no_rslora(base, adapter, tmp_path):
    out = tmp_path / "out"
    assert export_plain_alpha(adapter, out).out == out
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["use_rslora"] is False
    one, other = (their_logprobs(adapted(base, folder), TEXT) for folder in (adapter, out))
    assert (one - other).abs().max() < 1e-6
    assert (one - their_logprobs(hugging_face(base), TEXT)).abs().max() > 0.01


def test_alpha_is_multiplied_by_the_root_of_the_rank(tmp_path):
    tiny_run(tmp_path)
    epoch = tmp_path / "run" / "epoch-02"
    export_plain_alpha(epoch, tmp_path / "out")
    before, after = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (epoch, tmp_path / "out")
    )
    assert before["use_rslora"] is True
    assert after["lora_alpha"] == pytest.approx(before["lora_alpha"] * 2**0.5, rel=1e-14)
    for path in epoch.iterdir():
        if path.name not in ("adapter_config.json", "README.md"):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith((epoch / "README.md").read_text())
    assert "**A copy with a plain alpha**" in card


def test_merged_weights_are_those_that_peft_merges(base, adapter, tmp_path):
    out = tmp_path / "out"
    exported = export_merged(adapter, out, model=str(base))
    theirs = adapted(base, adapter)
    expected = their_logprobs(theirs, TEXT)
    merged = theirs.merge_and_unload(safe_merge=True)
    again = hugging_face(out)
    for name, weight in again.state_dict().items():
        torch.testing.assert_close(weight, merged.state_dict()[name], atol=1e-6, rtol=1e-6)
    ours = load_model(out, device=CPU, dtype=torch.float32).decoder
    assert (our_logprobs(ours, TEXT) - expected).abs().max() < 2e-5
    assert (their_logprobs(again, TEXT) - expected).abs().max() < 2e-5
    files = {path.name for path in base.iterdir()}
    assert {path.name for path in out.iterdir()} == files
    assert len([name for name in files if name.endswith(".safetensors")]) > 2
    assert exported.base == str(base)


@pytest.mark.parametrize("adapter", [SETTINGS["rslora"]], ids=["rslora"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_sum_is_rounded_once(base, adapter, tmp_path, dtype):
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(half)
    export_merged(adapter, tmp_path / "out", model=str(half))
    merged = adapted(half, adapter).merge_and_unload()
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in merged.state_dict().items():
        assert written[name].dtype == dtype
        assert torch.equal(written[name], weight.to(dtype))


def test_a_merged_folder_tokenizes_as_its_base(tmp_path):
    tiny_run(tmp_path)
    export_merged(tmp_path / "run" / "epoch-02", tmp_path / "out")  # the base it names itself
    one, other = (AutoTokenizer.from_pretrained(tmp_path / n) for n in ("model", "out"))
    text = "she waited by the door"
    assert one(text).input_ids == other(text).input_ids


def test_nothing_is_overwritten(base, tmp_path):
    for out in (tmp_path / "out", tmp_path / "link"):
        os.mkdir(out) if out.name == "out" else out.symlink_to("none")
        run = tmp_path / f"run-{out.name}"
        run.mkdir()
        tiny_run(run)
        for write in (export_plain_alpha, export_merged):
            with pytest.raises(ConfigError, match="expected a new folder, got one that exists"):
                write(run / "run" / "epoch-01", out)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_was_written_is_compared_before_it_has_its_name(tmp_path, monkeypatch):
    tiny_run(tmp_path)
    epoch = tmp_path / "run" / "epoch-02"

    def damaged(tensors: dict, path: Path, metadata: dict) -> None:
        name = max(name for name in tensors if "q_proj" in name and "bias" not in name)
        save_file(tensors | {name: tensors[name] + 0.01}, path, metadata=metadata)

    monkeypatch.setattr(export, "save_file", damaged)
    with pytest.raises(ModelError, match="expected the adapter that was written, got another"):
        export_plain_alpha(epoch, tmp_path / "plain")
    with pytest.raises(ModelError, match=r"expected model.layers.0.self_attn.q_proj.weight to be"):
        export_merged(epoch, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "run", "train.jsonl"}


@contextmanager
def as_another_user() -> Iterator[None]:
    """Have no right to what is the owner's alone."""
    if is_root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_what_may_not_be_read_is_named_and_no_failed_write(tmp_path):
    secret = tmp_path / "tokenizer.json"
    secret.write_text("{}")
    secret.chmod(0)
    folder = tmp_path / "epoch-01"
    folder.mkdir(mode=0)
    with as_another_user():
        with pytest.raises(ModelError, match="expected a file that can be read"):
            copy_file(secret, tmp_path / "copy")
        with pytest.raises(ModelError, match="epoch-01: expected a folder that can be read"):
            is_adapter(folder)
    folder.chmod(0o700)
    assert not (tmp_path / "copy").exists()


def test_a_sum_that_its_dtype_cannot_hold_is_refused(base, tmp_path):
    tiny_run(tmp_path)
    epoch = tmp_path / "run" / "epoch-02"
    path = tmp_path / "model" / "model.safetensors"
    save_file({n: t.half() for n, t in load_file(path).items()}, path, metadata={"format": "pt"})
    (epoch / "origin.json").unlink()
    weights = epoch / "adapter_model.safetensors"
    save_file({name: tensor * 1e5 for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(ModelError, match="may not fit float16"):
        export_merged(epoch, tmp_path / "out")


def test_an_adapter_of_another_base_is_not_merged(tmp_path):
    tiny_run(tmp_path)
    epoch = tmp_path / "run" / "epoch-02"
    other = tiny_model(tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"rms_norm_eps": 1e-3}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="expected an adapter trained on this model"):
        export_merged(epoch, tmp_path / "out", model=str(other))
    assert not (tmp_path / "out").exists()
