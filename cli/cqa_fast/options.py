"""Config dataclasses to flags, and the pages of `--help`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from cqa.config import GROUPS, is_unicode, key_of, read_settings, resolve
from cqa.errors import ConfigError
from cqa_fast.group import first_paragraph

T = TypeVar("T")
Command = Callable[..., None]


class NonEmptyPath(click.Path):
    """A path; an empty one, as of an unset variable, is not the current folder.

    One that is no Unicode is refused, as in settings: no JSON file holds it, no library opens it.
    """

    def convert(self, value: Any, param: Any, ctx: click.Context | None) -> Any:
        """Return it as a `Path`.

        Raises:
            ConfigError: It is empty, or no Unicode.
        """
        if param is not None and (value == "" or not is_unicode(os.fsdecode(value))):
            name = param.opts[0] if isinstance(param, click.Option) else param.make_metavar(ctx)
            if value == "":
                raise ConfigError(f"expected {name} to be a path, got an empty one")
            raise ConfigError(f"expected {name} to be plain text, got: {value!a:.80}")
        return super().convert(value, param, ctx)


A_PATH = NonEmptyPath(path_type=Path)


class Setting(click.Option):
    """An option that stands under a heading of the help, and has one value if it is given once."""

    def __init__(self, *args: Any, group: str = GROUPS[-1], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Collect every value given, so that none is replaced unseen."""
        if self.multiple:
            super().add_to_parser(parser, ctx)
        elif self.is_flag:
            for names, value in ((self.opts, True), (self.secondary_opts, False)):
                if names:
                    parser.add_option(
                        obj=self, opts=names, dest=self.name, action="append_const", const=value
                    )
        else:
            parser.add_option(obj=self, opts=self.opts, dest=self.name, action="append")

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> Any:
        """Take the one value.

        Raises:
            ConfigError: The command line holds several.
        """
        given = opts.get(self.name or "")
        if not self.multiple and isinstance(given, list):
            if len(given) > 1 and not ctx.resilient_parsing:
                shown = " and ".join(self._as_given(value) for value in given)
                raise ConfigError(f"expected {self.opts[0]} once, got: {shown}")
            opts = {**opts, self.name or "": given[-1]}
        return super().consume_value(ctx, opts)

    def _as_given(self, value: Any) -> str:
        if self.is_flag:
            return self.opts[0] if value else self.secondary_opts[0]
        return f"{self.opts[0]} {value}"


class HelpfulCommand(click.Command):
    """A command whose help lists options under headings, and whose summary is never cut."""

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first paragraph of the help, whole."""
        return first_paragraph(self)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each heading that has options."""
        sections: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections[getattr(parameter, "group", GROUPS[-1])].append(record)
        headings = [group for group in GROUPS if sections[group]]
        for group in headings:
            title = group if len(headings) > 1 else "Options"
            with formatter.section(title):
                formatter.write_dl(sections[group])


def flag(*names: str, **kwargs: Any) -> Callable[[Command], Command]:
    """Give a command an option that no config declares."""
    return click.option(*names, cls=Setting, **kwargs)


JSON = flag("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def command(name: str | None = None) -> Callable[[Command], click.Command]:
    """Make a function a command, by its own name or another."""
    return click.command(name, cls=HelpfulCommand)


def takes(
    cls: type[T],
    presets: dict[str, dict[str, Any]] | None = None,
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda _: {},
) -> Callable[[Callable[..., None]], Command]:
    """Give a command one flag per field of `cls`, and call it with the filled-in config.

    Precedence: default < what `implied` returns < preset < `--config` file < flag.

    Args:
        cls: The config.
        presets: Named settings to start from.
        implied: Returns what the command line and the file imply: the settings of a plan that is
            named there, of a run that is resumed.
    """

    def decorate(command: Callable[..., None]) -> Command:
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]

        @wraps(command)
        def run(config_file: Path | None, preset: str | None = None, **values: Any) -> None:
            flags = {n: v for n in names if (v := values.pop(n)) not in (None, ())}
            chosen = (presets or {}).get(preset or "", {})
            settings = read_settings(config_file) if config_file else {}
            under = implied({**values, **chosen, **settings, **flags})
            command(resolve(cls, under, chosen, settings, flags), **values)

        wrapped: Command = run
        hints = get_type_hints(cls)
        for f in reversed(fields(cls)):  # type: ignore[arg-type]
            wrapped = _declared(f, hints[f.name])(wrapped)
        over = "--preset and the defaults" if presets else "the defaults"
        wrapped = flag(
            "--config",
            "config_file",
            type=A_PATH,
            help=f"YAML file of these settings. It wins over {over}; a flag wins over it.",
        )(wrapped)
        if presets:
            wrapped = flag(
                "--preset", type=click.Choice(list(presets)), help="Named settings to start from."
            )(wrapped)
        return wrapped

    return decorate


def _declared(f: Any, kind: Any) -> Callable[[Command], Command]:
    """Return the flag of a config's field."""
    name, group = "--" + key_of(f.name), f.metadata["group"]
    text = f"{f.metadata['help']}  [{'; '.join(_notes(f, kind))}]"
    if kind is bool:
        return flag(f"{name}/--no-{name[2:]}", f.name, default=None, help=text, group=group)
    choices = next((k for k in (kind, *get_args(kind)) if get_origin(k) is Literal), None)
    if choices is not None:
        return flag(name, f.name, type=click.Choice(get_args(choices)), help=text, group=group)
    repeat = f.metadata["repeat"]
    metavar = _metavar(kind, repeat)
    return flag(name, f.name, multiple=repeat, metavar=metavar, help=text, group=group)


def _notes(f: Any, kind: Any) -> Sequence[str]:
    """Say of a field whether it is required or what its default is, and how it takes several."""
    if f.default is MISSING:
        first = "required"
    else:
        first = f"default: {f.metadata['shown'] or _shown(f.default)}"
    if f.metadata["repeat"]:
        return [first, "may be given several times"]
    return [first, "separated by commas"] if get_origin(kind) is tuple else [first]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metavar(kind: Any, repeat: bool) -> str:
    inner = [k for k in get_args(kind) if k not in (type(None), Ellipsis)]
    base = inner[0] if inner else kind
    word = {int: "N", float: "X", Path: "PATH"}.get(base, "TEXT")
    return f"{word},…" if get_origin(kind) is tuple and not repeat else word
