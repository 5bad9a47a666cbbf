from __future__ import annotations

import csv
import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from ..command import refusal, run

PROMPTS = [("a red circle", "Abstract", "Basic"), ("two cats", "Animals", "Quantity"), ("a cat", "Animals", "Basic")]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for shade, side in enumerate("ab"):
        (tmp_path / side).mkdir()
        lines = []
        for index, (prompt, *_) in enumerate(PROMPTS):
            Image.new("RGB", (4, 4), (shade, index, 0)).save(tmp_path / side / f"{index}.png")
            lines.append(json.dumps({"file_name": f"{index}.png", "text": prompt}))
        (tmp_path / side / "metadata.jsonl").write_text("\n".join(lines))
    rows = ["Prompt\tCategory\tChallenge\tNote", *("\t".join([*row, ""]) for row in PROMPTS)]
    (tmp_path / "p.tsv").write_text("\n".join(rows))
    return str(tmp_path / "a"), str(tmp_path / "b")


class Visitor(threading.Thread):
    """Waits for the server, votes once on what is next, and presses Ctrl-C."""

    def __init__(self, port: int, visit: int) -> None:
        super().__init__(daemon=True)
        self._port, self._visit = port, visit
        self.done_before, self.status = -1, 0

    def run(self) -> None:
        try:
            standing = json.loads(self._ask("GET", "/api/ballot?voter=Anna+B"))
            self.done_before = standing["done"]
            vote = {"vote": f"some-vote-{self._visit}", "voter": "Anna B", "pair": standing["next"][0]["pair"]}
            self._ask("POST", "/api/votes", json.dumps(vote | {"choice": "left", "milliseconds": 900}))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def _ask(self, method: str, path: str, body: str | None = None) -> bytes:
        for _ in range(600):
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            try:
                connection.request(method, path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                self.status = answer.status
                return answer.read()
            except ConnectionRefusedError:
                time.sleep(0.05)
            finally:
                connection.close()
        raise TimeoutError


def test_one_command_serves_ends_and_goes_on(folders, tmp_path, capsys):
    """A vote, Ctrl-C, the same command again, another vote, the results with their files."""
    database = str(tmp_path / "votes.sqlite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"--prompts": str(tmp_path / "p.tsv"), "--database": database, "--port": str(port), "--voter": "Anna B"}
    for visit in range(2):
        visitor = Visitor(port, visit)
        visitor.start()
        code = run("vote", *folders, *(word for pair in options.items() for word in pair))
        visitor.join()
        out, error = capsys.readouterr()
        lines = out.splitlines()
        assert (code, error, visitor.done_before, visitor.status) == (0, "", visit, 200)
        assert lines[0] == f"3 pairs; votes are kept in {database}"
        assert lines[1] == f"http://127.0.0.1:{port}/?voter=Anna+B"
        assert lines[-1] == f"votes: {visit + 1}, voters: 1; results: bitsfusion vote --results {database}"
    files = ["--csv", tmp_path / "v.csv", "--figures", tmp_path / "f"]
    assert run("vote", "--results", database, *files, "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert results["votes"]["a"] + results["votes"]["b"] == results["voted_pairs"] == 2
    assert results["names"] == ["a", "b"] and [voter["voter"] for voter in results["voters"]] == ["Anna B"]
    assert len(list(csv.DictReader((tmp_path / "v.csv").open()))) == 2
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"overall.png", "categories.png", "challenges.png"}
    assert run("vote", "--results", database) == 0
    assert "pairs voted on: 2 of 3, voters: 1" in capsys.readouterr().out


def test_mistakes_are_one_line(capsys, folders, tmp_path):
    database = ("--database", tmp_path / "v.sqlite")
    assert "wanted two folders" in refusal(capsys, "vote", folders[0])
    assert "go with --results" in refusal(capsys, "vote", *folders, "--json")
    assert "wanted one of them" in refusal(capsys, "vote", *folders, "--results", tmp_path / "v.sqlite")
    assert "no such file" in refusal(capsys, "vote", "--results", tmp_path / "v.sqlite")
    assert "wanted 1 to 40 letters" in refusal(
        capsys, "vote", *folders, "--voter", "<x>", "--database", tmp_path / "v.sqlite"
    )
    assert "no such folder" in refusal(capsys, "vote", folders[0], tmp_path / "c", *database)
    assert not (tmp_path / "v.sqlite").exists()


def test_without_the_extra_it_says_what_to_install(folders, tmp_path, capsys, monkeypatch):
    for name in ("bitsfusion.vote.app", "bitsfusion.vote.server"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    line = refusal(capsys, "vote", *folders, "--database", tmp_path / "v.sqlite")
    assert line.endswith("starlette.applications is not installed, wanted pip install 'bitsfusion[vote]'")
