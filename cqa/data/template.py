"""A chat template: messages to text, the same text every time, within bounds of time and length.

A template is a program that came with a model or from a user. It is rendered in the environment
that transformers renders in, with what may differ from one call to the next taken out (the clock,
chance), and with loops, calls and texts under watch, so that none runs for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError, meta, nodes
from jinja2.visitor import NodeTransformer

from cqa.data.jsonl import check_text
from cqa.errors import ConfigError, DataError
from cqa.reading import read_bounded

LONGEST_CHARS = 1 << 24  # of a rendered text, or of any text on the way to it
SECONDS = 10.0  # for one rendering
HAS = (
    "`messages` (each with `role` and `content`), `add_generation_prompt`, `bos_token`, `eos_token`"
)
_GIVEN = {"messages", "add_generation_prompt", "tools", "documents"}
_DIGITS_BITS = 1 << 16  # of a whole number, above which arithmetic would take long
Message = dict[str, str]


class _OutOfBoundsError(Exception):
    """A template took too long or made too long a text."""


class _NotRepeatableError(Exception):
    """A template asked for the time or for chance."""


class Template:
    """A compiled template, and what it is called in messages."""

    def __init__(self, source: str, name: str, tokens: Mapping[str, str]) -> None:
        """Compile a template.

        Args:
            source: Jinja, with what transformers adds to it.
            name: A file, or what else it is.
            tokens: Special tokens by the variable that they are, such as `bos_token`.

        Raises:
            ConfigError: It is not Jinja.
        """
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.source, self.name = source, name
        self._tokens = dict(tokens)
        self._deadline = 0.0
        shared = _compile_jinja_template("").environment
        self._environment = self._watched(shared.overlay())
        try:
            tree = self._environment.parse(source)
            self._reads = meta.find_undeclared_variables(tree)
            tree = _Watched().visit(tree)
            self._compiled = self._environment.from_string(tree)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"expected a Jinja template, got: {str(error.message)[:200]}",
                where=f"{name}:{error.lineno}",
            ) from None
        except (RecursionError, SyntaxError, ValueError) as error:
            raise ConfigError(
                f"expected a Jinja template, got: {str(error)[:200]}", where=name
            ) from None

    def render(self, messages: Sequence[Message], *, prompt_only: bool, where: str) -> str:
        """Render messages.

        Args:
            messages: {"role", "content"} in order.
            prompt_only: End with what opens the assistant's answer.
            where: The `file:line` that the messages are of.

        Raises:
            ConfigError: The template reads the clock or draws at random.
            DataError: It fails on these messages, or runs out of bounds.
        """
        self._deadline = time.monotonic() + SECONDS
        parts: list[str] = []
        n_chars = 0
        try:
            for part in self._compiled.generate(
                messages=[dict(message) for message in messages], tools=None, documents=None,
                add_generation_prompt=prompt_only, **self._tokens,
            ):  # fmt: skip
                n_chars += len(part)
                self._tick(n_chars)
                parts.append(part)
        except _NotRepeatableError as error:
            raise ConfigError(
                f"expected a template that renders the same text every time, got one that {error}",
                where=_at(self.name, error),
                hint="write what it shall say into a copy of the template, such as "
                "{% set date_string = '26 Jul 2024' %} in its first line, and give that file with "
                "--template",
            ) from None
        except Exception as error:  # a template is a program: it can fail in any way
            reason = str(error) or type(error).__name__
            raise DataError(
                f"expected a template that renders this, got: {reason[:200]} "
                f"({_at(self.name, error)})",
                where=where or None,
                hint=self.hint,
            ) from None
        text = "".join(parts)
        check_text(text, "the rendered text", where)
        return text

    @property
    def hint(self) -> str:
        """What a template has to work with, and which of what it reads is not there."""
        missing = sorted(self._reads - _GIVEN - set(self._tokens) - set(self._environment.globals))
        others = f"; this one also reads {', '.join(f'`{m}`' for m in missing)}" if missing else ""
        return f"a template has {HAS}{others}"[:500]

    def _watched(self, environment: Any) -> Any:
        """Return a Jinja environment whose every step is watched by this template."""

        def watched(function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                return self._held(function(*args, **kwargs))

            return call

        def concat(*parts: object) -> Any:
            return self._held("".join(map(str, parts)))

        environment.filters = {name: watched(f) for name, f in environment.filters.items()}
        environment.filters["random"] = _refusing("draws at random")
        environment.globals = {
            **environment.globals,
            "strftime_now": _refusing("reads the clock"),
            "lipsum": _refusing("draws at random"),
            _TICK: lambda: self._tick(0),
            _CONCAT: concat,
        }
        environment.call = watched(environment.call)
        environment.intercepted_binops = frozenset(environment.binop_table)
        environment.binop_table = {
            sign: _in_bounds(sign, watched(f)) for sign, f in environment.binop_table.items()
        }
        return environment

    def _held(self, value: Any) -> Any:
        self._tick(len(value) if isinstance(value, (str, list, tuple, dict)) else 0)
        return value

    def _tick(self, n_chars: int) -> None:
        if n_chars > LONGEST_CHARS:
            raise _OutOfBoundsError(f"a text of more than {LONGEST_CHARS:,} characters")
        if time.monotonic() > self._deadline:
            raise _OutOfBoundsError(f"no end after {SECONDS:g} seconds")


def _in_bounds(sign: str, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Refuse what is too large before it is computed, which cannot be stopped."""

    def call(left: Any, right: Any) -> Any:
        sizes = [len(x) if isinstance(x, (str, list, tuple)) else None for x in (left, right)]
        if sign == "*" and sizes != [None, None]:
            n = left if sizes[0] is None else right
            size = next(s for s in sizes if s is not None)
            if isinstance(n, int) and n * size > LONGEST_CHARS:
                raise _OutOfBoundsError(f"a text of more than {LONGEST_CHARS:,} characters")
        if sign in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if sign == "**" else left.bit_length()
            if bits + right.bit_length() > _DIGITS_BITS:
                raise _OutOfBoundsError("a number of thousands of digits")
        return function(left, right)

    return call


def _refusing(what: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise _NotRepeatableError(what)

    return refuse


_TICK, _CONCAT = "cqa_tick", "cqa_concat"


class _Watched(NodeTransformer):
    """Puts a check at the head of every loop and macro, and for every text that `~` joins."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call(_CONCAT, node.nodes, node)

    def _with_tick(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        tick = nodes.ExprStmt(_call(_TICK, [], node), lineno=node.lineno)
        tick.environment = node.environment
        node.body.insert(0, tick)
        return node  # type: ignore[no-any-return]


def _call(name: str, args: list[nodes.Expr], like: nodes.Node) -> nodes.Call:
    call = nodes.Call(nodes.Name(name, "load"), args, [], None, None)
    call.set_lineno(like.lineno, override=False)
    assert like.environment is not None
    call.set_environment(like.environment)
    return call


def _at(name: str, error: BaseException) -> str:
    """Return the template's `file:line` at which an error was raised."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{name}:{line}" if line else name


def read_template(choice: str, held: Any, tokens: Mapping[str, str]) -> Template | None:
    """Return the template that `--template` names; None for plain text.

    Args:
        choice: `plain`, `chat` or a Jinja file.
        held: The tokenizer's own template or templates, if it has any.
        tokens: See `Template`.

    Raises:
        ConfigError: There is no such file, it is special or too large, or it is not Jinja.
    """
    if choice == "plain":
        return None
    if choice == "chat":
        return Template(str(held), "the tokenizer's chat template", tokens)
    try:
        source = read_bounded(Path(choice), ConfigError, LONGEST_CHARS).decode("utf-8")
    except (OSError, UnicodeDecodeError, ValueError):
        raise ConfigError(
            f"expected --template plain, chat or a Jinja file, got: {choice[:200]}",
            hint=f"a Jinja file has {HAS}",
        ) from None
    return Template(source, choice, tokens)
