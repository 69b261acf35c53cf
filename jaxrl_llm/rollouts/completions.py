"""One question to a server that speaks JSON over HTTP, within a time and a size, and what its failure means."""

import dataclasses
import http.client
import json
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

LARGEST = 1 << 26
"""Bytes of the longest reply that is read."""

PASSING = frozenset({408, 425, 429, *range(500, 600)})
"""Statuses that say "later", not "no"."""


class SamplerError(RuntimeError):
    """A server that cannot be sampled from as it is set up; the message says what to change."""


class PassingError(Exception):
    """A question that may be answered when it is asked again. `kind` is the counter that it belongs to."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """Where the server is and what its model is called there.

    url    http://HOST:PORT, or https, with a path in front of /v1 if there is one
    model  its name in the server
    token  sent as a bearer token; empty: none
    """

    url: str
    model: str
    token: str = dataclasses.field(default="", repr=False)

    def __post_init__(self):
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"url must be http://HOST:PORT or https://HOST:PORT, not {self.url!r}")

    def post(self, path: str, body: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The JSON object that the server answers. The whole exchange takes little more than `seconds`, at most twice.

        Raises PassingError ("timeouts", "errors" or "malformed"), and SamplerError where the server refuses.
        """
        deadline = time.monotonic() + seconds
        parts = urllib.parse.urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=seconds)
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        try:
            connection.request("POST", parts.path.rstrip("/") + path, json.dumps(body).encode(), headers)
            reply = connection.getresponse()
            status, content = reply.status, _read(reply, deadline)
        except TimeoutError as error:
            raise PassingError("timeouts", f"{self.url}{path}: no answer within {seconds} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise PassingError("errors", f"{self.url}{path}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if status != 200:
            told = f"{self.url}{path} answers {status}: {content[:500].decode('utf-8', 'replace')}"
            raise PassingError("errors", told) if status in PASSING else SamplerError(told)
        return _object(content, f"{self.url}{path}")


def _read(reply: http.client.HTTPResponse, deadline: float) -> bytes:
    """All of the reply. A server that sends a byte now and then is no faster than one that sends nothing."""
    parts, size = [], 0
    while part := reply.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise http.client.HTTPException(f"a reply of more than {LARGEST} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    if reply.length:  # what was promised and has not come
        raise http.client.IncompleteRead(b"".join(parts), reply.length)
    return b"".join(parts)


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PassingError("malformed", f"{where}: the reply is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise PassingError("malformed", f"{where}: the reply is no JSON object but a {type(found).__name__}")
    return found
