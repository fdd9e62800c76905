"""The errors a user can cause, one class per exit code.

A message states what was expected and what was got; `where` is a `file:line` and comes first;
`hint` says what to do and comes last; a `command` that does it is shown whole. Of the others each
is cut at 300 characters, since what it quotes can be a whole file. Anything that is not a
`CqaError` is a bug.
"""

from cqa.text import shortened


class CqaError(Exception):
    """An error raised on purpose, shown to the user as one message without a traceback."""

    exit_code = 1
    is_ours_to_tell = False  # whether, of several processes that have it, this one tells

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        command: str | None = None,
    ) -> None:
        assert hint or not command, "a command is what a hint ends in"
        self.message = shortened(message)
        self.where = where and shortened(where)
        self.hint = hint and shortened(hint)
        super().__init__(self.message)
        self.command = command

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        if not self.hint:
            return text
        return f"{text}\nhint: {self.hint}" + (f": {self.command}" if self.command else "")


class ConfigError(CqaError):
    """A setting is unknown, malformed or out of range."""

    exit_code = 2


class DataError(CqaError):
    """An input file, line or field is missing or malformed."""

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        command: str | None = None,
        absent: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, where=where, hint=hint, command=command)
        self.absent = absent  # keys that a record lacks, which may have other names in its file


class ModelError(CqaError):
    """Model, adapter and tokenizer do not fit together or are not supported."""

    exit_code = 4


class NumericsError(CqaError):
    """A loss, gradient or score is not finite."""

    exit_code = 5


class ResourceError(CqaError):
    """Memory, disk or a lock is not available."""

    exit_code = 6


class ToldElsewhereError(CqaError):
    """What ended this process is told by another one that it worked with."""

    def __init__(self, error: CqaError) -> None:
        super().__init__(error.message, where=error.where, hint=error.hint)
        self.exit_code = error.exit_code
