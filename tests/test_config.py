"""Settings: which layer wins, how text becomes values, and what is refused by name."""

import json
import os
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqa.config import (
    MOST_SETTINGS_BYTES,
    describe,
    key_of,
    read_settings,
    resolve,
    same_setting,
    setting,
)
from cqa.errors import ConfigError
from cqa.study.config import CallbackTrainConfig, ScaleConfig
from cqa.train.config import PRESETS, TrainConfig

REQUIRED = {"model": "base", "data": "train.jsonl", "out": "run"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One field of each kind."""

    folder: Path = setting("Required.")
    rate: float = setting("A number.", 0.5)
    n_items: int = setting("A whole number.", 3)
    limit: int | None = setting("An optional whole number.", None)
    fast: bool = setting("A truth value.", False)
    names: tuple[str, ...] = setting("Texts.", ("a",))
    files: tuple[Path, ...] = setting("Paths.", ())
    mode: Literal["slow", "exact"] = setting("A choice.", "slow")
    label: str = setting("A text.", "none")
    epochs: tuple[int, ...] = setting("Whole numbers and ranges of them.", (), ranges=True)
    sizes: tuple[int, ...] = setting("Whole numbers, no ranges.", ())


def resolved(**raw: Any) -> Settings:
    return resolve(Settings, {"folder": "x", **raw})


def train_config(**raw: Any) -> TrainConfig:
    return resolve(TrainConfig, REQUIRED, raw)


def test_later_layers_win_and_unnamed_settings_keep_their_default():
    preset, file, flags = (
        {"rate": 1, "n-items": 10, "label": "preset"},
        {"rate": 2, "n-items": 20},
        {"rate": 3, "folder": "y"},
    )
    config = resolve(Settings, preset, file, flags)
    assert (config.rate, config.n_items, config.label, config.mode) == (3, 20, "preset", "slow")
    assert config.folder == Path("y")


@pytest.mark.parametrize("key", ["n-items", "n_items"])
def test_key_is_spelt_with_dashes_or_underscores(key):
    assert resolve(Settings, {"folder": "x", key: 7}).n_items == 7


@pytest.mark.parametrize(
    ("key", "raw", "value"),
    [
        ("rate", "1e-5", 1e-5),
        ("rate", "2e-4", 2e-4),
        ("rate", 1, 1.0),
        ("n_items", "12", 12),
        ("n_items", 12.0, 12),
        ("limit", None, None),
        ("limit", "8", 8),
        ("limit", 8, 8),
        ("fast", True, True),
        ("fast", "yes", True),
        ("fast", "On", True),
        ("fast", "false", False),
        ("names", "q,v", ("q", "v")),
        ("names", "q, v", ("q", "v")),
        ("names", ["q", "v"], ("q", "v")),
        ("names", ("q", "v"), ("q", "v")),
        ("names", "q", ("q",)),
        ("files", ["a", "b"], (Path("a"), Path("b"))),
        ("mode", "exact", "exact"),
        ("label", "0.1", "0.1"),
        ("epochs", "1-3,5", (1, 2, 3, 5)),
        ("epochs", "7", (7,)),
        ("epochs", " 2 - 2 , 4", (2, 4)),
        ("epochs", ["1-3", 5], (1, 2, 3, 5)),
        ("label", 0.1, "0.1"),
        ("label", Path("a") / "b", "a/b"),
    ],
    ids=str,
)
def test_raw_value_becomes_the_declared_type(key, raw, value):
    converted = getattr(resolved(**{key: raw}), key)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("key", "raw", "expected"),
    [
        ("rate", "fast", "rate to be a number, got: 'fast'"),
        ("rate", True, "rate to be a number, got: True"),
        ("rate", None, "rate to be a number, got: None"),
        ("rate", [1], "rate to be a number"),
        pytest.param("rate", 10**400, "rate to be a number", id="rate-beyond-floats"),
        ("n_items", "1.5", "n-items to be a whole number, got: '1.5'"),
        ("n_items", 1.5, "n-items to be a whole number, got: 1.5"),
        ("n_items", float("inf"), "n-items to be a whole number, got: inf"),
        ("n_items", False, "n-items to be a whole number, got: False"),
        ("n_items", None, "n-items to be a whole number, got: None"),
        ("limit", "many", "limit to be a whole number, got: 'many'"),
        ("fast", "maybe", "fast to be true or false, got: 'maybe'"),
        ("fast", 1, "fast to be true or false, got: 1"),
        ("folder", None, "folder to be a path, got: None"),
        ("mode", "quick", r"mode to be slow \| exact, got: 'quick'"),
        ("mode", ["slow"], r"mode to be slow \| exact"),
        ("epochs", "5-3", "a range in epochs to rise, by less than 10,000, got: 5-3"),
        ("epochs", "1-999999999", "a range in epochs to rise"),
        ("epochs", "1-", "epochs to be a whole number, got: '1-'"),
        ("epochs", 5, "epochs to be a list, got: 5"),
        ("sizes", "1-3", "sizes to be a whole number, got: '1-3'"),
        ("names", 5, "names to be "),
        ("names", None, "names to be "),
    ],
    ids=str,
)
def test_value_of_another_type_is_refused_by_name(key, raw, expected):
    with pytest.raises(ConfigError, match=f"expected {expected}") as caught:
        resolved(**{key: raw})
    assert caught.value.exit_code == 2


def test_misspelt_key_is_refused_with_the_nearest_one():
    message = "expected a known setting, got: `n-item`\nhint: did you mean `n-items`\\?"
    with pytest.raises(ConfigError, match=message):
        resolved(**{"n-item": 3})


def test_unknown_key_that_is_near_none_is_refused_with_where_to_look():
    with pytest.raises(ConfigError, match="got: `xyzzy`\nhint: `--help` lists all settings"):
        resolved(xyzzy=3)


def test_missing_required_setting_is_named():
    with pytest.raises(ConfigError, match=r"for --folder, got none\nhint: --folder: Required$"):
        resolve(Settings, {"rate": 1})


def test_described_settings_resolve_to_themselves():
    config = resolved(limit=4, names="q,v", files=["a"], rate="1e-5")
    described = describe(config)
    assert described["n-items"] == 3
    assert described["names"] == ["q", "v"]
    assert described["files"] == ["a"]
    assert resolve(Settings, described) == config


def settings_file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    return path


def test_yaml_settings_resolve_with_exponents_booleans_and_lists(tmp_path):
    text = b"lr: 1e-5\nrslora: no\ntargets: [q, v]\nmax-tokens: null\nvalidation: 0.25\nepochs: 3\n"
    config = train_config(**read_settings(settings_file(tmp_path, text)))
    assert (config.lr, config.rslora, config.targets) == (1e-5, False, ("q", "v"))
    assert (config.max_tokens, config.validation_share, config.epochs) == (None, 0.25, 3)


@pytest.mark.parametrize("content", [b"", b"# nothing\n"], ids=["empty", "comment"])
def test_empty_yaml_holds_no_settings(tmp_path, content):
    assert read_settings(settings_file(tmp_path, content)) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lr: 1\nepochs: [1, 2\n", "settings.yaml:3: expected YAML"),
        (b"lr: 1\n\tepochs: 2\n", "settings.yaml:2: expected YAML"),
        (b"lr: \xff\n", "settings.yaml: expected YAML"),
        (b"a: " + b"[" * 5_000, "settings.yaml.* expected YAML"),
        (b"a: 2024-13-45\n", "settings.yaml.* expected YAML"),
        (b"- lr\n- epochs\n", "settings.yaml: expected a mapping of settings, got: list"),
        (b"lr\n", "settings.yaml: expected a mapping of settings, got: str"),
    ],
    ids=["open-list", "tab", "not-utf8", "deep", "no-such-date", "list", "text"],
)
def test_file_that_is_no_yaml_mapping_is_refused(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(settings_file(tmp_path, content))


def test_missing_settings_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.yaml: expected a settings file, got: No such"):
        read_settings(tmp_path / "absent.yaml")


def test_setting_taken_from_another_config_differs_only_in_what_is_said():
    @dataclass(frozen=True, kw_only=True)
    class Other:
        limit: int | None = same_setting(Settings, "limit", more="Here too.")
        epochs: tuple[int, ...] = same_setting(Settings, "epochs", default=MISSING)

    limit, epochs = fields(Other)
    assert (limit.default, limit.metadata["help"]) == (None, "An optional whole number. Here too.")
    assert (epochs.default, epochs.metadata["ranges"]) == (MISSING, True)
    with pytest.raises(ConfigError, match="expected a value for --epochs, got none"):
        resolve(Other)


@pytest.mark.parametrize("cls", [CallbackTrainConfig, ScaleConfig])
def test_paper_preset_is_the_default_of_every_command_that_takes_it(cls):
    given = REQUIRED | ({"pairs": ["p"]} if cls is ScaleConfig else {})
    assert resolve(cls, PRESETS["paper"], given) == resolve(cls, given)


def test_paper_preset_is_the_recipe_of_the_paper():
    config = train_config()
    assert (config.rank, config.alpha, config.rslora) == (32, 32.0, True)
    assert config.targets == ("q", "k", "v", "o", "gate", "up", "down")
    assert (config.lr, config.warmup_ratio, config.epochs) == (2e-4, 0.1, 12)
    assert (config.micro_batch, config.grad_accum, config.global_batch_size) == (1, 2, 2)
    assert (config.dropout, config.neftune_alpha) == (0.05, 5.0)
    assert (config.max_grad_norm, config.weight_decay) == (1.0, 0.0)
    assert config.validation_share == 0.1


@pytest.mark.parametrize(
    ("key", "raw"),
    [
        ("epochs", 0),
        ("micro-batch", 0),
        ("grad-accum", -1),
        ("rank", 0),
        ("pass-tokens", 0),
        ("lr", 0),
        ("lr", "nan"),
        ("lr", "inf"),
        ("alpha", 0),
        ("alpha", "inf"),
        ("warmup-ratio", 1),
        ("warmup-ratio", -0.1),
        ("dropout", 0.999999),
        ("dropout", -0.1),
        ("max-grad-norm", -1),
        ("max-grad-norm", "inf"),
        ("weight-decay", -1),
        ("weight-decay", "inf"),
        ("neftune-alpha", -1),
        ("neftune-alpha", "inf"),
        ("seed", -1),
        ("seed", 2**64),
        ("targets", "q,x"),
        ("targets", ""),
        ("targets", []),
        ("max-tokens", 1),
        ("validation", 1),
        ("validation", "-0.1"),
        ("validation", "nan"),
    ],
    ids=str,
)
def test_value_out_of_range_is_refused_by_name(key, raw):
    with pytest.raises(ConfigError, match=f"expected {key} .*, got: "):
        train_config(**{key: raw})


@pytest.mark.parametrize(
    ("key", "raw"),
    [
        ("warmup-ratio", 0),
        ("dropout", 0),
        ("max-grad-norm", 0),
        ("seed", 2**64 - 1),
        ("max-tokens", 2),
        ("validation", 0),
        ("validation", "held-out.jsonl"),
        ("targets", "down"),
    ],
    ids=str,
)
def test_value_at_the_edge_is_accepted(key, raw):
    value = getattr(train_config(**{key: raw}), key.replace("-", "_"))
    assert value in (raw, str(raw), (raw,))


def test_validation_that_is_no_number_names_a_file():
    assert train_config(validation="held-out.jsonl").validation_share is None


RAW = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=2), v, max_size=2),
    max_leaves=4,
) | st.sampled_from(["1", "1e-4", "nan", "q,v", "on", "0.1", "cpu", "plain", 10**400, "\ud800"])
NAMES = [key_of(f.name) for f in fields(TrainConfig)]


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(NAMES), RAW, max_size=3))
def test_any_value_is_taken_and_described_or_refused_by_name(changes):
    try:
        config, refused = resolve(TrainConfig, REQUIRED, changes), None
    except ConfigError as error:
        config, refused = None, error
    if refused is not None:
        assert refused.message.startswith("expected ")
        assert any(key.partition("-")[0] in refused.message for key in changes)
    else:
        assert json.loads(json.dumps(describe(config), allow_nan=False)) == describe(config)


def test_settings_file_with_merges_is_refused_at_once(tmp_path):
    path = tmp_path / "bomb.yaml"
    lines = ["a0: &a0 {k0: 1}"]
    for i in range(1, 12):
        merged = ", ".join([f"*a{i - 1}"] * 9)
        lines.append(f"a{i}: &a{i} {{<<: [{merged}], k{i}: 1}}")
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"bomb.yaml:2: .*got a merge"):
        read_settings(path)


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "more"])
def test_settings_file_is_a_regular_file_of_a_bounded_size(tmp_path, kind):
    path = tmp_path / "settings.yaml"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a folder":
        path.mkdir()
    else:
        path.write_text("#" * (MOST_SETTINGS_BYTES + 1))
    with pytest.raises(ConfigError, match=f"settings.yaml: expected .*, got {kind}"):
        read_settings(path)


@pytest.mark.parametrize(
    "name", ["rank", "epochs", "micro-batch", "grad-accum", "pass-tokens", "max-tokens"]
)
def test_a_number_that_nothing_can_hold_is_refused_by_the_settings(name):
    with pytest.raises(ConfigError, match=rf"^expected {name} of at most [\d,]+, got: 10{{30}}$"):
        resolve(TrainConfig, REQUIRED, {name: "1" + "0" * 30})


def test_number_of_seeds_is_bounded_and_the_last_one_is_a_seed():
    study = {**REQUIRED, "pairs": ["pairs.jsonl"]}
    with pytest.raises(ConfigError, match=r"^expected seeds from 1 to 1,000"):
        resolve(ScaleConfig, study, {"seeds": 10**30})
    with pytest.raises(ConfigError, match=r"^expected every seed below 2"):
        resolve(ScaleConfig, study, {"seeds": 2, "seed": 2**64 - 1})
