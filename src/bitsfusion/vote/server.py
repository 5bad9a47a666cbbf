"""The server of the vote, on one address of this computer, until Ctrl-C."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from bitsfusion.errors import InputError
from bitsfusion.vote.app import vote_app
from bitsfusion.vote.database import VoteDatabase
from bitsfusion.vote.pictures import Study

DEFAULT_PORT = 8021
LONGEST_WAIT_SECONDS = 3


@dataclass(frozen=True)
class VoteServer:
    """A server that has its address, and is not yet running."""

    server: uvicorn.Server
    socket: socket.socket
    url: str

    def run(self) -> None:
        """Serves until Ctrl-C or SIGTERM, answers what is under way, and raises KeyboardInterrupt after Ctrl-C."""
        self.server.run(sockets=[self.socket])

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serves in a thread for as long as the context lasts; yields the URL."""
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            yield self.url
        finally:
            self.server.should_exit = True
            thread.join()


def vote_server(study: Study, database: VoteDatabase, host: str = "127.0.0.1", port: int | None = None) -> VoteServer:
    """Takes an address, so that the URL is known and works from now on.

    Args:
        port: 0 for any that is free; unless given, 8021, or any if that is taken.

    Raises:
        InputError: the address cannot be had.
    """
    taken = _bound(host, DEFAULT_PORT if port is None else port, or_any=port is None)
    port = int(taken.getsockname()[1])
    config = uvicorn.Config(
        vote_app(study, database, host, port),
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=LONGEST_WAIT_SECONDS,
    )
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return VoteServer(uvicorn.Server(config), taken, f"http://{shown}:{port}/")


def _bound(host: str, port: int, or_any: bool) -> socket.socket:
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen(1024)
    except OSError as error:
        taken.close()
        other = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        if or_any and other == "--port":
            return _bound(host, 0, or_any=False)
        raise InputError(f"{host}:{port}: could not be served ({error.strerror}); another {other}?") from None
    return taken
