"""Config dataclasses to flags, and `CqaError` to a message and an exit code."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from cqa.config import key_of, read_settings, resolve
from cqa.errors import ConfigError, CqaError, ResourceError

T = TypeVar("T")
Command = Callable[..., None]


def takes(
    cls: type[T], presets: dict[str, dict[str, Any]] | None = None
) -> Callable[[Callable[..., None]], Command]:
    """Give a command one flag per field of `cls`, and call it with the filled-in config.

    Precedence: default < preset < `--config` file < flag.
    """

    def decorate(command: Callable[..., None]) -> Command:
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]

        @wraps(command)
        def run(config_file: Path | None, preset: str | None = None, **values: Any) -> None:
            flags = {n: v for n in names if (v := values.pop(n)) not in (None, ())}
            chosen = (presets or {}).get(preset or "", {})
            settings = read_settings(config_file) if config_file else {}
            command(resolve(cls, chosen, settings, flags), **values)

        wrapped: Command = run
        hints = get_type_hints(cls)
        for f in reversed(fields(cls)):  # type: ignore[arg-type]
            wrapped = _flag(f, hints[f.name])(wrapped)
        wrapped = click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            help="YAML file of these settings; flags win over it.",
        )(wrapped)
        if presets:
            wrapped = click.option(
                "--preset", type=click.Choice(list(presets)), help="Named settings to start from."
            )(wrapped)
        return wrapped

    return decorate


def _flag(f: Any, kind: Any) -> Callable[[Command], Command]:
    name = "--" + key_of(f.name)
    text = f.metadata["help"]
    if f.default is MISSING:
        text += "  [required]"
    elif f.default not in (None, ()) and kind is not bool:
        shown = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        text += f"  [default: {shown}]"
    if kind is bool:
        text += f"  [default: {'on' if f.default else 'off'}]"
        return click.option(f"{name}/--no-{name[2:]}", f.name, default=None, help=text)
    if get_origin(kind) is Literal:
        return click.option(name, f.name, type=click.Choice(get_args(kind)), help=text)
    metavar = _metavar(kind)
    return click.option(name, f.name, multiple=f.metadata["repeat"], metavar=metavar, help=text)


def _metavar(kind: Any) -> str:
    inner = [k for k in get_args(kind) if k not in (type(None), Ellipsis)]
    base = inner[0] if inner else kind
    word = {int: "N", float: "X", Path: "PATH"}.get(base, "TEXT")
    return f"{word},…" if get_origin(kind) is tuple and base is not Path else word


class Terminated(BaseException):
    """SIGTERM came where there is nothing to finish or to save."""


class ErrorsAsMessages(click.Group):
    """A group whose commands end in one message and an exit code where a user can mend it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a `CqaError` becomes `error: …` on standard error."""
        before = _on_sigterm(_terminate)
        try:
            return super().invoke(ctx)
        except CqaError as error:
            show(error)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("error: interrupted", err=True)
            ctx.exit(130)
        except Terminated:
            click.echo("error: terminated", err=True)
            ctx.exit(143)
        except BrokenPipeError:
            sys.stderr.close()
            ctx.exit(0)
        except OSError as error:
            reason = f"expected to read or write, got: {error.strerror or error}"
            show(ResourceError(reason, where=str(error.filename) if error.filename else None))
            ctx.exit(ResourceError.exit_code)
        except MemoryError:
            show(ResourceError("expected enough memory, got none"))
            ctx.exit(ResourceError.exit_code)
        finally:
            _on_sigterm(before)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest command for an unknown one."""
        from difflib import get_close_matches

        near = get_close_matches(args[0], self.commands, n=1)
        if args[0] not in self.commands and near:
            raise ConfigError(
                f"expected a command, got: {args[0]}", hint=f"did you mean `{near[0]}`?"
            )
        return super().resolve_command(ctx, args)


def _terminate(*_: object) -> None:
    raise Terminated


def _on_sigterm(handler: Any) -> Any:
    """Set what SIGTERM does; return what it did."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return None


def show(error: CqaError) -> None:
    """Print an error: what was expected and got, then what to do."""
    place = f"{error.where}: " if error.where else ""
    click.echo(f"{click.style('error', fg='red', bold=True)}: {place}{error.message}", err=True)
    if error.hint:
        click.echo(f"{click.style('hint', fg='cyan', bold=True)}: {error.hint}", err=True)
