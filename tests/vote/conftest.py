from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from bitsfusion.vote.database import VoteDatabase, open_study
from bitsfusion.vote.pictures import Study, read_study
from bitsfusion.vote.prompts import read_topics
from bitsfusion.vote.server import vote_server

PROMPTS = [
    ("a red circle", "Abstract", "Basic"),
    ("two blue squares", "Abstract", "Quantity"),
    ('a sign that says "open"', "Vehicles", "Writing & Symbols"),
    ("a dog left of a cat", "Animals", "Basic"),
    ("a cat", "Animals", "Basic"),
    ("<b>bold</b> & co", "Vehicles", "Quantity"),
]


def write_pictures(folder: Path, prompts: list[str], shade: int, size: int = 8) -> Path:
    """Pictures that differ from one another, as `bitsfusion generate` lays them out."""
    folder.mkdir(parents=True)
    lines = []
    for index, prompt in enumerate(prompts):
        Image.new("RGB", (size, size), (shade, 30 * index % 256, index % 256)).save(folder / f"{index:04d}.png")
        lines.append(json.dumps({"file_name": f"{index:04d}.png", "text": prompt, "seed": 1024 + index}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    rows = ["Prompt\tCategory\tChallenge\tNote", *("\t".join([*row, ""]) for row in PROMPTS)]
    path = tmp_path / "prompts.tsv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    texts = [prompt for prompt, *_ in PROMPTS]
    return write_pictures(tmp_path / "secret_one", texts, 200), write_pictures(tmp_path / "secret_two", texts, 100)


@pytest.fixture
def study(folders: tuple[Path, Path], tsv: Path) -> Study:
    return read_study(*folders, read_topics(tsv))


@pytest.fixture
def database(tmp_path: Path, study: Study) -> Iterator[VoteDatabase]:
    opened = open_study(tmp_path / "votes.sqlite", study, seed="seven")
    yield opened
    opened.close()


@pytest.fixture
def url(study: Study, database: VoteDatabase) -> Iterator[str]:
    with vote_server(study, database, port=0).running() as served:
        yield served


Ask = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def ask(url: str) -> Ask:
    """Sends a request exactly as it is given, over a connection of its own: (status, headers, body)."""
    address = url.removeprefix("http://").removesuffix("/")

    def send(
        path: str, body: object = None, method: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(address, timeout=60)
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if data is not None else {}
        try:
            connection.request(method or ("GET" if data is None else "POST"), path, data, sent | (headers or {}))
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    return send
