"""Ask a server that speaks JSON, and believe nothing of what it says.

A request has a time limit, is repeated a few times where a server is busy or broken, and then ends
in one error that names the URL and what came back. Redirects are not followed, because a key would
go along. The key is taken from the environment when it is used, and stands in no message.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from forge.core.errors import EvaluationError

_MAX_BYTES: Final = 8 << 20
_SHOWN: Final = 160
_BUSY: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
_LONGEST_PAUSE_S: Final = 30.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object, **kwargs: object) -> None:
        """Return nothing, so that the redirect is the answer."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server and how to ask it.

    Attributes:
        url: Where its paths begin, such as ``http://127.0.0.1:8000/v1``.
        key_variable: Environment variable with the key, or ``None``.
        timeout_s: Limit of one request.
        attempts: Most requests for one answer.
        sleep: Waits between attempts.
    """

    url: str
    key_variable: str | None = None
    timeout_s: float = 120.0
    attempts: int = 5
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def check(self) -> None:
        """Refuse what cannot be asked.

        Raises:
            EvaluationError: The URL is no URL of the web, or the key's variable is not set.
        """
        try:
            parts = urlsplit(self.url)
            is_web = parts.scheme in ("http", "https") and bool(parts.hostname)
            _ = parts.port
        except ValueError:
            is_web = False
        if not is_web:
            raise EvaluationError(
                f"'{self.url}' is no URL of an API. Write it as 'http://127.0.0.1:8000/v1'."
            )
        self._headers()

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key_variable is not None:
            key = os.environ.get(self.key_variable, "").strip()
            if not key:
                raise EvaluationError(
                    f"The environment variable '{self.key_variable}' has no API key. Set it, or "
                    "leave --api-key-env away."
                )
            if not key.isprintable() or not key.isascii():
                raise EvaluationError(
                    f"The environment variable '{self.key_variable}' holds no valid API key."
                )
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def post(self, path: str, body: Mapping[str, object]) -> Mapping[str, object]:
        """Send a request and return the answer.

        Args:
            path: Behind the URL, such as ``/completions``.
            body: Plain JSON values.

        Returns:
            The object that came back.

        Raises:
            EvaluationError: No attempt brought a JSON object.
        """
        url = self.url.rstrip("/") + path
        data = json.dumps(body).encode()
        for attempt in range(1, self.attempts + 1):
            request = urllib.request.Request(url, data, self._headers(), method="POST")
            pause = min(_LONGEST_PAUSE_S, 0.5 * 2**attempt)
            try:
                # Only http and https are let in by `check`.
                with _opener().open(request, timeout=self.timeout_s) as answer:
                    return _object(url, answer.read(_MAX_BYTES + 1))
            except urllib.error.HTTPError as error:
                with error:
                    shown = _shorten(error.read(_SHOWN * 4))
                if error.code not in _BUSY or attempt == self.attempts:
                    raise EvaluationError(
                        f"'{url}' answered {error.code} {error.reason}{_tries(attempt)}: {shown}. "
                        "What is finished is stored; the same command resumes."
                    ) from error
                pause = _asked_pause(error.headers.get("Retry-After"), pause)
            except (OSError, http.client.HTTPException) as error:
                if attempt == self.attempts:
                    reason = getattr(error, "reason", None) or error
                    raise EvaluationError(
                        f"'{url}' cannot be reached{_tries(attempt)}: "
                        f"{reason or type(error).__name__}. Is the server running? What is "
                        "finished is stored; the same command resumes."
                    ) from error
            self.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


def shown(value: object) -> str:
    """Return a value of an answer as a message may show it."""
    return _shorten(json.dumps(value, default=str).encode())


def nonsense(url: str, path: str, fault: str, came: object) -> EvaluationError:
    """Return the error for an answer that does not say what it should."""
    return EvaluationError(
        f"'{url.rstrip('/')}{path}' {fault}. It answered: {shown(came)}. What is finished is "
        "stored; the same command resumes."
    )


def number(value: object) -> float | None:
    """Return a log-probability that JSON holds, or ``None`` for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value <= 1e-3 else None


_local = threading.local()


def _opener() -> urllib.request.OpenerDirector:
    if not hasattr(_local, "opener"):
        _local.opener = urllib.request.build_opener(_NoRedirect)
    opener: urllib.request.OpenerDirector = _local.opener
    return opener


def _object(url: str, data: bytes) -> Mapping[str, object]:
    if len(data) > _MAX_BYTES:
        raise EvaluationError(
            f"'{url}' answered with more than {_MAX_BYTES >> 20} MiB. Is it a server of models?"
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            f"'{url}' did not answer with JSON, but: {_shorten(data)}. Is the URL that of the API, "
            "such as 'http://127.0.0.1:8000/v1'?"
        ) from error
    if not isinstance(value, dict):
        raise EvaluationError(f"'{url}' did not answer with a JSON object, but: {_shorten(data)}.")
    return value


def _asked_pause(header: str | None, otherwise: float) -> float:
    try:
        asked = float(header or "")
    except ValueError:
        return otherwise
    return min(_LONGEST_PAUSE_S, max(0.0, asked)) if math.isfinite(asked) else otherwise


def _tries(attempt: int) -> str:
    return "" if attempt == 1 else f" {attempt} times"


def _shorten(data: bytes) -> str:
    text = " ".join(data[: 4 * _SHOWN].decode("utf-8", "replace").split())
    return (text if len(text) <= _SHOWN else text[:_SHOWN] + " …") or "nothing"
