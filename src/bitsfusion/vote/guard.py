"""What a request must be before it is looked at: for this host, from this page, small; and what every answer says."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_BODY = 4096
POLICY = (
    "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ANY = ("0.0.0.0", "::")


class Guard:
    """Refuses what a foreign page could send, and adds the headers of a page that loads nothing from elsewhere.

    A name that was made to point here (DNS rebinding) shows in Host: it has to be the host and port served, or where
    every address is served, any address but no other name. What changes anything has to be JSON, and where a browser
    says from where, from this very origin.
    """

    def __init__(self, app: App, host: str, port: int) -> None:
        """`host` and `port` are what the server is bound to."""
        self._app, self._host, self._port = app, host, port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                headers += _HEADERS
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message["headers"] = headers
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(send_with_headers, *refusal)
            return
        body = await _read(receive)
        if body is None:
            await _answer(send_with_headers, 413, f"body: wanted at most {LARGEST_BODY} bytes")
            return
        await self._app(scope, body, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self._is_here(hosts[0]):
            return 421, f"host: got {', '.join(hosts)[:80]!r}, wanted {self._host}:{self._port}"
        if scope["method"] in ("GET", "HEAD"):
            return None
        values = dict(headers)
        origin = values.get(b"origin")
        if origin is not None and origin.lower() != f"http://{hosts[0].lower()}":
            return 403, f"origin: got {origin[:80]!r}, wanted this page's"
        if values.get(b"sec-fetch-site", "same-origin") != "same-origin":
            return 403, "origin: got a request from another site, wanted this page's"
        kind = values.get(b"content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return 415, f"content-type: got {kind[:80]!r}, wanted application/json"
        return None

    def _is_here(self, host: str) -> bool:
        """Whether a Host header names what is served."""
        name, _, port = host.rpartition(":")
        if not name or port != str(self._port):
            name, port = host, "80"
        if port != str(self._port):
            return False
        name = name.lower().removeprefix("[").removesuffix("]")
        if name in _LOOPBACK or name == self._host.lower():
            return True
        return self._host in _ANY and _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _read(receive: Receive) -> Receive | None:
    """The whole body, to be received again; None where it is too large."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            return None
        if not message.get("more_body", False):
            break
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Send, status: int, line: str) -> None:
    body = line.encode("utf-8", "replace")
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
