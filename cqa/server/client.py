"""JSON to and from a server: a bounded number of tries, and a key that nothing shows.

A redirect is not followed, since the key would go along, and to this machine no proxy is asked;
what the server says in an error is shown without the key.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import IO, Any
from urllib.parse import urlsplit

from cqa.errors import ModelError, ResourceError
from cqa.server.address import THIS_MACHINE
from cqa.text import named, shortened

MOST_BYTES = 256 << 20  # of an answer; one with 32,768 log-probabilities has a fiftieth
LONGEST_ANSWER = 160  # characters that a message quotes of what a server says
FAILED = 500  # what some servers answer to every request that they do not take
BUSY = (408, 425, 429)  # worth another try, as is every 5xx
AGAIN = "give the same command again when it is back; the rows so far are kept"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request may take, and how often it is made."""

    timeout_s: float = 300.0  # without a byte; an answer waits for those before it in the queue
    tries: int = 7
    first_wait_s: float = 1.0  # doubled after each try
    longest_wait_s: float = 60.0  # what Retry-After asks for beyond this is not waited for

    def waits_s(self, tries: int) -> list[float]:
        """Return the waits between so many tries, where the server asks for no other."""
        return [min(self.first_wait_s * 2**k, self.longest_wait_s) for k in range(tries - 1)]


class RefusedError(Exception):
    """The server answered that it does not take this request; another try would not help."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}".strip())
        self.status = status


def served_no_more(model: str, refused: RefusedError, where: str) -> ModelError:
    """Return the error of a model that a server had at the start and does not know now."""
    return ModelError(
        f"expected {model} at the server, got {refused}",
        where=where,
        hint="it was there at the start; the rows so far are kept",
    )


class LostError(ResourceError):
    """The server did not answer, however often it was asked."""

    said = ""  # the last time
    status: int | None = None  # if it said anything


class _PassedError(Exception):
    """The server could not answer this time."""

    def __init__(self, reason: str, wait_s: float | None = None, status: int | None = None) -> None:
        super().__init__(reason)
        self.wait_s, self.status = wait_s, status  # what the server asks for, and says


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Client:
    """One server; calls may be made from several threads at once."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Remember the server; nothing is sent yet.

        Args:
            url: What the paths of requests are put behind, such as `http://localhost:8000/v1`.
            key: What it is told as the bearer's token; None tells none.
            patience: How often and how long it is asked.
            sleep: What waits between two tries.
            on_wait: Told once, until the server answers again, what is waited for and how long.
        """
        self.url = url
        self._key = key
        self._patience = patience or Patience()
        self._sleep = sleep
        self._on_wait = on_wait
        self._is_waiting, self._lock = False, threading.Lock()
        handlers: list[type | urllib.request.BaseHandler] = [_NoRedirect]
        if urlsplit(url).hostname in THIS_MACHINE:
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path: str, *, tries: int | None = None) -> dict[str, Any]:
        """Return the JSON object at a path; see `post`."""
        return self._tried(path, None, tries)

    def post(self, path: str, body: dict[str, Any], *, tries: int | None = None) -> dict[str, Any]:
        """Send a JSON object; return the one that is answered.

        Args:
            path: Such as `/completions`.
            body: What is sent.
            tries: How often at most, where it is not as `patience` says.

        Raises:
            RefusedError: The server does not take this request.
            ModelError: It does not take the key, or answers with a redirect.
            LostError: There is no answer after all tries.
        """
        return self._tried(path, json.dumps(body).encode(), tries)

    def _tried(self, path: str, data: bytes | None, tries: int | None) -> dict[str, Any]:
        waits_s = self._patience.waits_s(tries or self._patience.tries)
        for n, wait_s in enumerate([*waits_s, None], start=1):
            try:
                found = self._once(path, data)
            except _PassedError as passed:
                asked_s = passed.wait_s or 0.0
                if wait_s is None or asked_s > self._patience.longest_wait_s:
                    raise self._lost(path, passed, n) from None
                self._tell_of_wait(path, passed, len(waits_s), sum(waits_s))
                self._sleep(max(wait_s, asked_s))
            else:
                self._is_waiting = False
                return found
        raise AssertionError("the last try returns or raises")

    def _tell_of_wait(self, path: str, passed: _PassedError, n_more: int, wait_s: float) -> None:
        with self._lock:  # of several requests that wait, one tells
            was_waiting, self._is_waiting = self._is_waiting, True
        if not was_waiting:
            again = "once more" if n_more == 1 else f"up to {n_more} times more"
            self._on_wait(f"{self.url}{path}: {passed}; asked {again}, within {wait_s:.0f} s")

    def _lost(self, path: str, passed: _PassedError, n_tries: int) -> LostError:
        asked = f", which asks to wait {passed.wait_s:.0f} s" if passed.wait_s else ""
        lost = LostError(
            f"expected an answer from the server, got after "
            f"{'1 try' if n_tries == 1 else f'{n_tries} tries'}: {passed}{asked}",
            where=self.url + path,
            hint=AGAIN,
        )
        lost.said, lost.status = str(passed), passed.status
        return lost

    def _once(self, path: str, data: bytes | None) -> dict[str, Any]:
        headers = {"Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with self._opener.open(request, timeout=self._patience.timeout_s) as answer:
                return _parsed(_bounded(answer))
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(path, error) from None
        except urllib.error.URLError as error:
            raise _PassedError(_said(error.reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise _PassedError(_said(error)) from None

    def _refused(self, path: str, error: urllib.error.HTTPError) -> Exception:
        if error.code in BUSY or error.code >= 500:
            wait_s = _retry_after_s(error.headers.get("Retry-After"))
            return _PassedError(self._shown(error), wait_s, error.code)
        if error.code in (401, 403):
            return ModelError(  # without what the server says, which may hold the key
                f"expected a key that the server takes, got refused by {error.code} with "
                f"{'none' if self._key is None else 'the one given'} (probe `key`)",
                where=self.url,
                hint="--server-key-env names the environment variable that holds it",
            )
        if 300 <= error.code < 400:
            target = named(self._without_key(error.headers.get("Location", "nowhere")))
            return ModelError(
                f"expected the server itself, got {error.code}, a redirect to {target}",
                where=self.url + path,
                hint="a key is not sent on to where a server points; give that address",
            )
        return RefusedError(error.code, self._shown(error).removeprefix(str(error.code)).strip())

    def _shown(self, error: urllib.error.HTTPError) -> str:
        """Return the status and what the server says, on one line and without the key."""
        try:
            said = _message(error.read(1 << 16))
        except (OSError, http.client.HTTPException):
            said = ""
        said = " ".join(self._without_key(whole(said or str(error.reason))).split())
        return f"{error.code} {shortened(said, LONGEST_ANSWER)}".strip()

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "<key>") if self._key else text


def whole(text: str) -> str:
    """Return a server's text as a file can hold it: without halves of signs."""
    return text.encode("utf-8", "replace").decode()


def _bounded(answer: IO[bytes]) -> bytes:
    data = answer.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise _PassedError(f"more than {MOST_BYTES:,} bytes")
    return data


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _PassedError("an answer that is no JSON") from None
    if not isinstance(value, dict):
        raise _PassedError("an answer that is no JSON object")
    return value


def _message(data: bytes) -> str:
    """Return the message in the body of an error, as OpenAI, FastAPI and others write it."""
    text = data.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(key):
            value = value[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _said(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no byte within the time limit"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return named(str(error) or type(error).__name__)


def _retry_after_s(header: str | None) -> float | None:
    """Return the seconds that a Retry-After asks for, in either of its two forms."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
