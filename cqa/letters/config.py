"""Settings of a letter choice."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from cqa.config import require, same_setting, setting
from cqa.data.tables import parse_columns
from cqa.score.config import ScoreConfig, require_address, require_concurrency
from cqa.server.address import Server


@dataclass(frozen=True, kw_only=True)
class LettersConfig:
    """One letter choice at a chat server."""

    server: str = setting("Address of a server of chat completions.", group="Server")
    served_model: str = same_setting(ScoreConfig, "served_model", default=MISSING, shown=None)
    server_key_env: str | None = same_setting(ScoreConfig, "server_key_env")
    concurrency: int = same_setting(ScoreConfig, "concurrency")
    pairs: tuple[Path, ...] = same_setting(ScoreConfig, "pairs", default=MISSING, shown=None)
    columns: tuple[str, ...] = same_setting(ScoreConfig, "columns")
    out: Path = setting("Folder for letters.jsonl and letters.json.", group="Output")

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        require(bool(self.pairs), "--pairs", "none")
        parse_columns(self.columns)
        require_address(self.server)
        require(self.served_model != "", "the name of the model at the server", "an empty one")
        require_concurrency(self.concurrency)

    @property
    def at_server(self) -> Server:
        """The server that chooses."""
        return Server(self.server, self.served_model, self.server_key_env, self.concurrency)
