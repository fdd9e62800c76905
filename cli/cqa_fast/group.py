"""The group of commands: each ends in its result, or in one message and an exit code."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from cqa.errors import ConfigError, CqaError, ResourceError
from cqa_fast.terminal import show, tell

_ENDING = (signal.SIGTERM, signal.SIGHUP)


def first_paragraph(command: click.Command) -> str:
    """Return what stands beside a command in a list of commands."""
    return " ".join((command.help or "").split("\n\n")[0].split())


class Terminated(BaseException):
    """SIGTERM or SIGHUP came where there is nothing to finish or to save."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Commands(click.Group):
    """A group that lists its commands in their order, and suggests the nearest for an unknown."""

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return the first paragraph of the help, whole."""
        return first_paragraph(self)

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands in the order in which they are used, with their whole summaries."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str()) for name, command in self.commands.items()]
            )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which the commands are declared."""
        return list(self.commands)


class ErrorsAsMessages(Commands):
    """A group whose commands end in one message and an exit code where a user can mend it."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what a user can mend becomes `error: …` on standard error."""
        try:
            with _terminable():
                return super().invoke(ctx)
        except BrokenPipeError:
            # What flushes standard output when Python ends must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            ctx.exit(0)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else ctx.command_path
            show(ConfigError(_expected(error), hint=f"{path} --help"))
            ctx.exit(ConfigError.exit_code)
        except CqaError as error:
            show(error)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            tell("error: interrupted")
            ctx.exit(128 + signal.SIGINT)
        except Terminated as error:
            tell("error: terminated")
            ctx.exit(128 + error.signum)
        except OSError as error:
            reason = f"expected to read or write, got: {error.strerror or error}"
            show(ResourceError(reason, where=str(error.filename) if error.filename else None))
            ctx.exit(ResourceError.exit_code)
        except MemoryError:
            show(ResourceError("expected enough memory, got none"))
            ctx.exit(ResourceError.exit_code)


def _expected(error: click.UsageError) -> str:
    """Return click's message in the words of all others."""
    text = error.format_message().rstrip(".")
    more = re.fullmatch(r"Got unexpected extra arguments? \((.*)\)", text, re.DOTALL)
    return f"expected no more arguments, got: {more[1]}" if more else text


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise `Terminated` at SIGTERM and SIGHUP, unless the caller has them ignored (`nohup`)."""

    def terminate(signum: int, _: object) -> NoReturn:
        raise Terminated(signum)

    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = (s for s in _ENDING if signal.getsignal(s) is not signal.SIG_IGN)
        before = {s: signal.signal(s, terminate) for s in heard}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def require_working_directory() -> None:
    """Refuse a current folder that was deleted; libraries end in a crash there.

    Raises:
        ResourceError: There is none.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise ResourceError(
            f"expected a current folder, got: {error.strerror}",
            hint="it was deleted or cannot be read; cd to another",
        ) from None
