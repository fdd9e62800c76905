"""Settings: declared once as dataclass fields, filled from preset, file and flags.

Precedence: default < preset < file < flag. A field's name with dashes is its flag and YAML key.
"""

from __future__ import annotations

import dataclasses
import os
import re
import reprlib
import shlex
import types
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cqa.errors import ConfigError
from cqa.reading import MERGE, read_bounded, yaml_loader

T = TypeVar("T")


GROUPS = (  # headings of `--help`, in the order in which it shows them
    "Model and data",
    "Output",
    "Text",
    "LoRA",
    "Optimizer",
    "Study",
    "Statistics",
    "Memory and device",
    "Server",
    "Command",
)
LONGEST_RANGE = 10_000
MOST_EPOCHS = 10_000
MOST_SETTINGS_BYTES = 1 << 20
MOST_TOKENS = 2**31 - 1  # of one pass: kernels count in 32 bits
_RANGE = re.compile(r"\s*([0-9]{1,9})\s*-\s*([0-9]{1,9})\s*")


def setting(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    group: str = "Command",
    shown: str | None = None,
    repeat: bool = False,
    ranges: bool = False,
    path_unless: tuple[str, ...] | None = None,
) -> Any:
    """Declare a dataclass field that carries its command-line help; no default means required.

    Args:
        help: What the setting does, for `--help`.
        default: Its default value.
        group: Its heading in `--help`, one of `GROUPS`.
        shown: What the default amounts to, where the value does not say it.
        repeat: Whether the flag is given once per value (`--adapter A --adapter B`).
        ranges: Whether a list of whole numbers may hold ranges (`1-3,5`).
        path_unless: Of a text that names a path: the words that do not. None: it names none.
    """
    assert group in GROUPS, group
    metadata = {
        "help": help, "group": group, "shown": shown, "repeat": repeat, "ranges": ranges,
        "path_unless": path_unless,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def same_setting(cls: type, name: str, *, more: str = "", **changed: Any) -> Any:
    """Declare a field as another config declares it: the same help, heading and default.

    Args:
        cls: The config that declares it.
        name: Its name there.
        more: What the setting does here besides, for `--help`.
        changed: Arguments of `setting` that differ here; `default=MISSING` makes it required.
    """
    (other,) = (f for f in dataclasses.fields(cls) if f.name == name)
    declared = {**other.metadata, "default": other.default}
    declared["help"] = f"{other.metadata['help']} {more}".strip()
    return setting(**{**declared, **changed})


def key_of(name: str) -> str:
    """Spell a field's name as flag and YAML key; a word of Python's has an underscore after it."""
    return name.rstrip("_").replace("_", "-")


def resolve(cls: type[T], *layers: Mapping[str, Any]) -> T:
    """Build a config from layers of raw values; later layers win.

    Args:
        cls: A frozen dataclass whose fields were declared with `setting`.
        layers: Mappings from field name or YAML key to a raw value; strings are converted.

    Raises:
        ConfigError: A key is unknown, a required one is missing, or a value does not convert.
    """
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for layer in layers:
        named: set[str] = set()
        for key, raw in layer.items():
            name = str(key).replace("-", "_")
            name = name if name in fields else f"{name}_"
            if name not in fields:
                raise _unknown_key(str(key), fields)
            if name in named:
                raise ConfigError(f"expected {key_of(name)} once, got it spelt in two ways")
            named.add(name)
            if fields[name].metadata["ranges"]:
                raw = _expanded(raw, key_of(name))
            values[name] = convert(raw, hints[name], key_of(name))
    missing = [
        key_of(name)
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and name not in values
    ]
    if missing:
        (what,) = (f.metadata["help"] for name, f in fields.items() if key_of(name) == missing[0])
        raise ConfigError(
            f"expected a value for --{missing[0]}, got none",
            hint=f"--{missing[0]}: {what.partition('. ')[0].rstrip('.')}",
        )
    return cls(**values)


def read_keywords(cls: type[T], *layers: Mapping[str, Any]) -> T:
    """Build a config from keyword arguments, as `resolve` does of flags.

    One value for a setting that may be given several times is a list of it; a path may be text.
    """
    repeat = {f.name for f in dataclasses.fields(cls) if f.metadata["repeat"]}  # type: ignore[arg-type]

    def several(key: str, value: Any) -> Any:
        return (value,) if key in repeat and isinstance(value, (str, Path)) else value

    return resolve(cls, *({k: several(k, v) for k, v in layer.items()} for layer in layers))


def _unknown_key(key: str, fields: Mapping[str, Any]) -> ConfigError:
    known = [key_of(name) for name in fields]
    near = get_close_matches(key, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else "`--help` lists all settings"
    return ConfigError(f"expected a known setting, got: `{key}`", hint=hint)


def convert(raw: Any, kind: Any, key: str) -> Any:
    """Convert a raw value (from YAML or a flag) to the declared type of setting `key`."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(raw, get_args(kind), key)
    if kind is str and isinstance(raw, Path):
        raw = str(raw)  # a model may be a folder or an id of the hub
    scalar = isinstance(raw, (str, int, float)) and not isinstance(raw, bool)
    if raw is None or (kind is str and not scalar):
        raise ConfigError(f"expected {key} to be {_noun(kind)}, got: {_shown(raw)}")
    if origin is Literal:
        if raw in get_args(kind):
            return raw
        choices = " | ".join(str(choice) for choice in get_args(kind))
        raise ConfigError(f"expected {key} to be {choices}, got: {_shown(raw)}")
    if origin is tuple:
        if not isinstance(raw, (str, list, tuple)):
            raise ConfigError(f"expected {key} to be a list, got: {_shown(raw)}")
        parts = raw.split(",") if isinstance(raw, str) else raw
        item = get_args(kind)[0]
        return tuple(convert(p.strip() if isinstance(p, str) else p, item, key) for p in parts)
    if kind is bool:
        return _convert_bool(raw, key)
    if kind in (int, float) and isinstance(raw, bool):
        raise ConfigError(f"expected {key} to be {_noun(kind)}, got: {_shown(raw)}")
    if kind is int and isinstance(raw, float) and not raw.is_integer():
        raise ConfigError(f"expected {key} to be {_noun(kind)}, got: {_shown(raw)}")
    if kind is Path and raw == "":
        raise ConfigError(f"expected {key} to be a path, got an empty one")
    if isinstance(raw, str) and ("\0" in raw or not is_unicode(raw)):
        raise ConfigError(f"expected {key} to be plain text, got: {_shown(raw)}")
    try:
        return kind(raw)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"expected {key} to be {_noun(kind)}, got: {_shown(raw)}") from error


def _expanded(raw: Any, key: str) -> Any:
    """Write out the ranges of a list of whole numbers: "1-3,5" is 1, 2, 3, 5."""
    parts = raw.split(",") if isinstance(raw, str) else raw
    if not isinstance(parts, (list, tuple)):
        return raw
    numbers: list[Any] = []
    for part in parts:
        found = _RANGE.fullmatch(part) if isinstance(part, str) else None
        if found is None:
            numbers.append(part)
            continue
        first, last = int(found[1]), int(found[2])
        if not first <= last < first + LONGEST_RANGE:
            expected = f"a range in {key} to rise, by less than {LONGEST_RANGE:,}"
            raise ConfigError(f"expected {expected}, got: {part}")
        numbers.extend(range(first, last + 1))
    return numbers


def is_unicode(text: str) -> bool:
    """Return whether a text has no half of a pair, as a name that is no UTF-8 has for its bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _convert_union(raw: Any, kinds: tuple[Any, ...], key: str) -> Any:
    if raw is None and type(None) in kinds:
        return None
    (kind,) = (k for k in kinds if k is not type(None))
    return convert(raw, kind, key)


def _convert_bool(raw: Any, key: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.lower() in words:
        return words[raw.lower()]
    raise ConfigError(f"expected {key} to be true or false, got: {_shown(raw)}")


def _shown(raw: Any) -> str:
    """Return a short repr, also of what YAML's aliases make huge."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(raw)


def _noun(kind: Any) -> str:
    return {int: "a whole number", float: "a number", Path: "a path"}.get(kind, "text")


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        ConfigError: The file is missing, special or too large, is not YAML, or is not a mapping.
    """
    import yaml

    class Once(yaml_loader()):  # type: ignore[misc]
        """A safe loader that refuses a key that comes twice."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise ConfigError(
                        f"expected each setting once, got `{key.value}` twice",
                        where=f"{path}:{key.start_mark.line + 1}",
                    )
                seen.add(key.value)
            settings: dict[Any, Any] = super().construct_mapping(node, deep)
            return settings

    try:
        settings = Once(read_bounded(path, ConfigError, MOST_SETTINGS_BYTES)).get_single_data()
    except OSError as error:
        raise ConfigError(
            f"expected a settings file, got: {error.strerror}", where=str(path)
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        got = MERGE if getattr(error, "problem", None) == MERGE else "text that is not YAML"
        raise ConfigError(f"expected YAML settings, got {got}", where=where) from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        got = type(settings).__name__
        raise ConfigError(f"expected a mapping of settings, got: {got}", where=str(path))
    return settings


def describe(config: Any) -> dict[str, Any]:
    """Return a config as JSON-ready YAML keys and values, for run.json and meta.json."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            text = str(value)
            return f"hf://{text[4:]}" if text.startswith("hf:/") else text  # a path has one slash
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return {key_of(f.name): plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def given_settings(config: Any) -> dict[str, Any]:
    """Return what of a config is not its default, as `describe` does."""
    others = {key_of(f.name) for f in dataclasses.fields(config) if _is_default(config, f)}
    return {key: value for key, value in describe(config).items() if key not in others}


def _is_default(config: Any, field: Any) -> bool:
    return bool(getattr(config, field.name) == field.default)


def input_paths(config: Any) -> list[tuple[str, Path]]:
    """Return what a command reads, as (flag, path): every path of a config that is there but `out`.

    Text counts in the settings that may name one, such as `model`; see `setting`.
    """
    found = []
    for f in dataclasses.fields(config):
        value, words = getattr(config, f.name), f.metadata["path_unless"]
        for one in value if isinstance(value, tuple) else (value,):
            named = isinstance(one, str) and words is not None and one not in ("", *words)
            is_path = isinstance(one, Path) or named
            if f.name != "out" and is_path and os.path.exists(one):
                found.append((f"--{key_of(f.name)}", Path(one)))
    return found


def command_line(cls: type, name: str, settings: Mapping[str, Any]) -> str:
    """Spell a command with settings as `describe` returns them, ready for a shell.

    A name such as `study fit` is several words.
    """
    repeat = {key_of(f.name) for f in dataclasses.fields(cls) if f.metadata["repeat"]}
    words = ["cqa-fast", *name.split()]
    for key, value in settings.items():
        several = value if key in repeat else [value]
        words += [word for one in several for word in flag_words(key, one)]
    return shlex.join(words)


def flag_words(key: str, value: Any) -> list[str]:
    """Spell one setting as it is typed; None is that it is not given."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no-{key}"]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return [f"--{key}", text]


def require(condition: bool, expected: str, got: object) -> None:
    """Raise a `ConfigError` unless a setting's value is in range."""
    if not condition:
        raise ConfigError(f"expected {expected}, got: {got}")
