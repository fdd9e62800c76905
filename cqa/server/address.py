"""Where a server is and what key it is told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from cqa.errors import ConfigError

USUAL_KEY = "OPENAI_API_KEY"
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Server:
    """A server and the model that it is asked for.

    Attributes:
        url: Its address, with or without `/v1` at the end.
        model: What it calls the model.
        key_env: The environment variable that holds the key; None is `USUAL_KEY` if that is set.
        concurrency: Requests at a time.
    """

    url: str
    model: str
    key_env: str | None = None
    concurrency: int = 4

    @property
    def base(self) -> str:
        """What the paths of requests are put behind."""
        bare = self.url.rstrip("/")
        return bare if bare.endswith("/v1") else f"{bare}/v1"

    def key(self) -> str | None:
        """Return the key from the environment; None where there is none.

        One that is not named goes out encrypted or to this machine only, since it may be another
        service's.

        Raises:
            ConfigError: The variable that is named is not set, or is no header's value.
        """
        name = self.key_env or USUAL_KEY
        value = os.environ.get(name, "").strip()
        if self.key_env is not None and not value:
            raise ConfigError(
                f"expected a key in the environment variable {name}, got none",
                where="--server-key-env",
            )
        if not value:
            return None
        parts = urlsplit(self.base)
        if self.key_env is None and parts.scheme != "https" and parts.hostname not in THIS_MACHINE:
            return None
        if not value.isascii() or not value.isprintable():
            raise ConfigError(f"expected a key of printable ASCII in {name}, got other characters")
        return value


def url_problem(url: str) -> str | None:
    """Say what is wrong with an address; it is written to files, so it may hold no secret."""
    try:
        parts = urlsplit(url)
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError:
        return "another"
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_sound:
        return "another"
    if parts.username is not None or parts.password is not None:
        return "one with a name or password in it"
    if parts.query or parts.fragment:
        return "one with a query or fragment"
    if parts.path.rstrip("/").endswith(("/completions", "/models", "/embeddings")):
        return "one that goes on after /v1"
    return None if url.isprintable() and " " not in url else "one with spaces in it"
