"""What a request must be before it is looked at: for this host, from this page; and what every answer says."""

from __future__ import annotations

import ipaddress

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ANY = ("0.0.0.0", "::")


class Guard:
    """Refuses what a foreign page could send, and adds the headers of a page that loads nothing from elsewhere.

    A name that was made to point here (DNS rebinding) shows in Host: it has to be the host and port served, or where
    every address is served, any address but no other name. What changes anything has to be JSON, and where a browser
    says from where, from this very origin.
    """

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        """`host` and `port` are what the server is bound to."""
        self._app, self._host, self._port = app, host, port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(Request(scope))
        answer = self._app if refusal is None else PlainTextResponse(refusal[1], refusal[0])
        await answer(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> tuple[int, str] | None:
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not self._is_here(hosts[0]):
            return 421, f"host: got {', '.join(hosts)[:80]!r}, wanted {self._host}:{self._port}"
        if request.method in ("GET", "HEAD"):
            return None
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() != f"http://{hosts[0].lower()}":
            return 403, f"origin: got {origin[:80]!r}, wanted this page's"
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return 403, "origin: got a request from another site, wanted this page's"
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
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
