"""The vote as a web application: one page, three calls, pictures under meaningless names, and the results."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

from pydantic import ConfigDict, Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.io.schema import Checked, parse
from bitsfusion.vote.blinding import a_is_left, picture_token
from bitsfusion.vote.database import Conflict, VoteDatabase
from bitsfusion.vote.guard import Guard
from bitsfusion.vote.pictures import Picture, Study
from bitsfusion.vote.results import QUESTION, vote_results, votes_csv
from bitsfusion.vote.results_page import results_page

AHEAD = 4
"""Pairs that an answer holds: the one to vote on and those to load beforehand."""

LARGEST_BODY = 4096

_LONGEST_NAME = 40
_ID = r"[A-Za-z0-9-]{8,64}"
_STATIC = {"vote.html": "text/html", "vote.css": "text/css", "vote.js": "text/javascript", "icon.svg": "image/svg+xml"}


class _Ballot(Checked):
    model_config = ConfigDict(strict=True)

    vote: str = Field(pattern=f"^{_ID}$")
    voter: str
    pair: int
    choice: str = Field(pattern="^(left|right)$")
    milliseconds: int = Field(ge=0, le=86_400_000)


class _Withdrawal(Checked):
    model_config = ConfigDict(strict=True)

    vote: str = Field(pattern=f"^{_ID}$")
    voter: str


def vote_app(study: Study, database: VoteDatabase, host: str, port: int) -> ASGIApp:
    """The application for a server bound to `host` and `port`. It serves only what was read
    beforehand: the page's own files, and the study's pictures as long as their bytes have not changed.
    """
    pages = _Pages(study, database)
    static = [Route(f"/{name}", pages.static(name)) for name in _STATIC if name != "vote.html"]
    routes = [
        Route("/", pages.static("vote.html")),
        *static,
        Route("/api/ballot", pages.ballot),
        Route("/api/votes", pages.vote, methods=["POST"]),
        Route("/api/undo", pages.undo, methods=["POST"]),
        Route("/pictures/{token}", pages.picture),
        Route("/results", pages.results),
        Route("/results.json", pages.results_json),
        Route("/results.csv", pages.results_csv),
    ]
    app = Starlette(routes=routes, exception_handlers={BitsFusionError: _refused, Exception: _failed})
    app.router.redirect_slashes = False
    return Guard(app, host, port)


class _Pages:
    def __init__(self, study: Study, database: VoteDatabase) -> None:
        self._database = database
        self._prompts = tuple(pair.prompt for pair in study.pairs)
        self._pictures: dict[str, Picture] = {}
        for number, pair in enumerate(study.pairs):
            for side, picture in (("a", pair.a), ("b", pair.b)):
                self._pictures[picture_token(database.seed, number, side)] = picture

    @staticmethod
    def static(name: str) -> Callable[[Request], Awaitable[Response]]:
        body = resources.files("bitsfusion.vote").joinpath("static", name).read_bytes()

        async def answer(request: Request) -> Response:
            return Response(body, media_type=_STATIC[name])

        return answer

    async def ballot(self, request: Request) -> Response:
        return await self._standing(check_voter(request.query_params.get("voter", "")))

    async def vote(self, request: Request) -> Response:
        ballot = parse(_Ballot, await _json(request), "vote")
        voter = check_voter(ballot.voter)
        await run_in_threadpool(
            self._database.cast,
            ballot.vote,
            voter,
            ballot.pair,
            left=ballot.choice == "left",
            milliseconds=ballot.milliseconds,
        )
        return await self._standing(voter)

    async def undo(self, request: Request) -> Response:
        withdrawal = parse(_Withdrawal, await _json(request), "undo")
        voter = check_voter(withdrawal.voter)
        await run_in_threadpool(self._database.withdraw, withdrawal.vote, voter)
        return await self._standing(voter)

    async def _standing(self, voter: str) -> Response:
        """How far the voter is, and the next pairs as this voter sees them."""
        standing = await run_in_threadpool(self._database.standing, voter)
        total = self._database.pairs
        return JSONResponse(
            {
                "question": QUESTION,
                "voter": voter,
                "total": total,
                "done": total - len(standing.waiting),
                "last": standing.last,
                "next": [self._shown(voter, pair) for pair in standing.waiting[:AHEAD]],
            }
        )

    def _shown(self, voter: str, pair: int) -> dict[str, Any]:
        seed = self._database.seed
        sides = ("a", "b") if a_is_left(seed, voter, pair) else ("b", "a")
        left, right = (f"/pictures/{picture_token(seed, pair, side)}" for side in sides)
        return {"pair": pair, "prompt": self._prompts[pair], "left": left, "right": right}

    async def picture(self, request: Request) -> Response:
        picture = self._pictures.get(request.path_params["token"])
        if picture is None:
            return _line(404, "picture: no such one")
        body = await run_in_threadpool(_unchanged, picture)
        if body is None:
            return _line(410, "picture: it was removed or changed since the vote was started")
        headers = {"cache-control": "private, max-age=86400, immutable"}
        return Response(body, media_type=picture.media_type, headers=headers)

    async def results(self, request: Request) -> Response:
        results = await run_in_threadpool(lambda: vote_results(self._database.record()))
        return Response(results_page(results), media_type="text/html")

    async def results_json(self, request: Request) -> Response:
        results = await run_in_threadpool(lambda: vote_results(self._database.record()))
        return JSONResponse(results.model_dump(mode="json"))

    async def results_csv(self, request: Request) -> Response:
        text = await run_in_threadpool(lambda: votes_csv(self._database.record()))
        headers = {"content-disposition": 'attachment; filename="votes.csv"'}
        return Response(text, media_type="text/csv", headers=headers)


def check_voter(name: str) -> str:
    """A voter's name without spaces around it, in Unicode's form NFC: the same name from any keyboard is one voter.

    Raises:
        InputError: it is empty, too long, or has other characters than letters with their marks, digits, spaces and
            `. _ @ + -`, or begins with one of those.
    """
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    letters = [unicodedata.category(letter)[0] in "LMN" for letter in name]
    known = all(is_letter or letter in " ._@+-" for letter, is_letter in zip(name, letters, strict=True))
    if not (1 <= len(name) <= _LONGEST_NAME and known and (letters[0] or name[0] == "_")):
        raise InputError(f"voter: got {name[:60]!r}, wanted 1 to 40 letters, digits, spaces or . _ @ + -")
    return name


def _unchanged(picture: Picture) -> bytes | None:
    """The bytes that were hashed; None where the file has changed since."""
    try:
        body = picture.path.read_bytes()
    except OSError:
        return None
    return body if hashlib.sha256(body).hexdigest() == picture.sha256 else None


async def _json(request: Request) -> Any:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"body: wanted at most {LARGEST_BODY} bytes")
    try:
        return json.loads(body)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise InputError("body: wanted JSON") from None


def _line(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)


async def _refused(request: Request, error: Exception) -> Response:
    status = 409 if isinstance(error, Conflict) else 400 if isinstance(error, InputError) else 503
    return _line(status, str(error))


async def _failed(request: Request, error: Exception) -> Response:
    return _line(500, "the server failed at this request")
