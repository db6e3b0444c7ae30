"""The little of HTTP/1.1 that the admin address speaks: one GET or HEAD without a body, one answer, the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

MOST_HEADERS = 100
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        method: `GET`, `HEAD` or one that is not served.
        path: Decoded, without the query.
        query: The last value of each key.
        headers: By name in lower case; the last of those that are there twice.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def host(self) -> str:
        """The name by which the address was reached, without the port; empty where it is not said."""
        try:
            return urlsplit(f"//{self.headers.get('host', '')}").hostname or ""
        except ValueError:
            return ""


@dataclass(frozen=True)
class Response:
    """What is answered."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self, *, head: bool = False) -> bytes:
        """As it goes over the wire; with `head` without the body."""
        told = {
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.body)),
            "Date": formatdate(usegmt=True),
            "X-Content-Type-Options": "nosniff",
            **self.headers,
            "Connection": "close",
        }
        if self.status is HTTPStatus.NOT_MODIFIED:
            del told["Content-Type"], told["Content-Length"]
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        start = f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n{lines}\r\n".encode("latin-1")
        return start if head else start + self.body


def parse_request(head: bytes) -> Request:
    r"""Reads a request up to the empty line after its headers.

    Raises:
        ValueError: it is not HTTP/1.

    >>> asked = parse_request(b"GET /api/x?a=1%202 HTTP/1.1\r\nHost: [::1]:8002\r\n\r\n")
    >>> asked.method, asked.path, asked.query, asked.host
    ('GET', '/api/x', {'a': '1 2'}, '::1')
    """
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, target, version = first.split(" ")
    if not version.startswith("HTTP/1.") or len(lines) > MOST_HEADERS:
        raise ValueError("not a request of HTTP/1")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError("a header without a value")
        headers[name.strip().lower()] = value.strip()
    path, _, query = target.partition("?")
    return Request(method, unquote(path), dict(parse_qsl(query, max_num_fields=20)), headers)


def text(status: HTTPStatus, body: str, **headers: str) -> Response:
    """A line of text."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, TEXT, body.encode(), named)
