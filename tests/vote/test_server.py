from __future__ import annotations

import http.client
import json
import socket
import threading
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from bitsfusion.errors import InputError
from bitsfusion.vote.app import LARGEST_BODY, check_voter
from bitsfusion.vote.database import open_study
from bitsfusion.vote.server import vote_server


def ballot(**changes: object) -> dict[str, object]:
    return {"vote": "0123456789", "voter": "anna", "pair": 0, "choice": "left", "milliseconds": 10} | changes


def test_a_vote_over_http(ask, study, database):
    status, headers, body = ask("/api/ballot?voter=anna")
    first = json.loads(body)["next"][0]
    assert status == 200 and headers["cache-control"] == "no-store"
    assert first["prompt"] == study.pairs[first["pair"]].prompt
    status, _, body = ask("/api/votes", ballot(pair=first["pair"]))
    after = json.loads(body)
    assert (status, after["done"], after["total"], after["last"]) == (200, 1, 6, "0123456789")
    assert first["pair"] not in [pair["pair"] for pair in after["next"]]
    (vote,) = database.record().votes
    pair = study.pairs[vote.pair]
    shown = ask(first["left"])[2]
    assert shown == {"a": pair.a, "b": pair.b}[vote.choice].path.read_bytes()
    assert json.loads(ask("/api/undo", {"vote": "0123456789", "voter": "anna"})[2])["done"] == 0
    assert database.record().votes == ()


def test_voters_see_both_sides(ask, study):
    """Over several voters, A is on the left in some and on the right in others; each sees both pictures."""
    places = set()
    for name in range(12):
        for shown in json.loads(ask(f"/api/ballot?voter=v{name}")[2])["next"]:
            pair = study.pairs[shown["pair"]]
            sides = [ask(shown[side])[2] for side in ("left", "right")]
            assert sorted(sides) == sorted(picture.path.read_bytes() for picture in (pair.a, pair.b))
            places.add(sides[0] == pair.a.path.read_bytes())
    assert places == {True, False}


def test_nothing_tells_the_models(ask, url):
    """No folder's name in anything that a voter gets before the results."""
    paths = ["/", "/vote.js", "/vote.css", "/api/ballot?voter=anna"]
    shown = json.loads(ask(paths[-1])[2])["next"]
    for path in [*paths, *(pair[side] for pair in shown for side in ("left", "right"))]:
        status, headers, body = ask(path)
        assert status == 200
        assert b"secret_" not in path.encode() + body + repr(headers).encode()
    assert b"secret_one" in ask("/results.json")[2]


def test_200_requests_at_once(ask, database, study):
    """100 votes of 20 voters, each sent twice, by 200 clients that start together: every one is kept, once."""
    work = [
        ballot(
            vote=f"{voter:04d}-{pair:04d}", voter=f"voter {voter}", pair=pair, choice="left" if pair % 2 else "right"
        )
        for voter in range(20)
        for pair in range(5)
        for _ in range(2)
    ]
    together = threading.Barrier(len(work))

    def send(body: dict[str, object]) -> int:
        together.wait(60)
        return int(ask("/api/votes", body)[0])

    with ThreadPoolExecutor(len(work)) as clients:
        statuses = list(clients.map(send, work))
    assert Counter(statuses) == {200: 200}
    votes = database.record().votes
    assert Counter((vote.voter, vote.pair) for vote in votes) == Counter(
        {(f"voter {voter}", pair): 1 for voter in range(20) for pair in range(5)}
    )
    assert all((vote.choice == vote.on_left) == (vote.pair % 2 == 1) for vote in votes)


def test_contradictions_at_once_leave_one_vote(ask, database):
    """60 clients vote for one voter's pair, half for each side, each with an id of its own: one side wins."""
    bodies = [ballot(vote=f"vote-{i:04d}", choice="left" if i % 2 else "right") for i in range(60)]
    with ThreadPoolExecutor(60) as clients:
        statuses = Counter(clients.map(lambda body: ask("/api/votes", body)[0], bodies))
    assert statuses == {200: 30, 409: 30}
    assert len(database.record().votes) == 1


def test_input_is_checked(ask, database):
    cases: list[tuple[dict[str, object], str]] = [
        ({"pair": 6}, "pair: got 6"),
        ({"pair": -1}, "pair: got -1"),
        ({"pair": "0"}, "pair"),
        ({"pair": True}, "pair"),
        ({"choice": "a"}, "choice"),
        ({"choice": None}, "choice"),
        ({"vote": "short"}, "vote"),
        ({"vote": "x" * 65}, "vote"),
        ({"vote": "'; DROP TABLE"}, "vote"),
        ({"voter": ""}, "voter"),
        ({"voter": "a" * 41}, "voter"),
        ({"voter": "<script>"}, "voter"),
        ({"milliseconds": -1}, "milliseconds"),
        ({"milliseconds": 10**12}, "milliseconds"),
        ({"milliseconds": 1.5}, "milliseconds"),
        ({"more": 1}, "more"),
    ]
    for changes, words in cases:
        status, _, body = ask("/api/votes", ballot(**changes))
        assert status == 400 and words in json.loads(body)["error"], changes
    assert database.record().votes == ()


@pytest.mark.parametrize("name", ["हिन्दी", "Zoë", "Zoe\u0308", "李 小龙", "ann.b+c@d_e-f", "_", "7"])
def test_names_of_everybody(name):
    checked = check_voter(f"  {name}\t")
    assert checked == unicodedata.normalize("NFC", name) == check_voter(checked)


@pytest.mark.parametrize(
    "name", ["", " ", "=1+1", "-a", "@a", "+a", ".", "a\0b", "a\u202eb", "a<b", "a&b", "🎨", "a\u200bb"]
)
def test_names_that_are_none(name):
    with pytest.raises(InputError, match="wanted 1 to 40 letters"):
        check_voter(name)


def test_bodies_that_are_no_ballot(ask):
    for body in [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 4000, b'{"vote": NaN}']:
        assert ask("/api/votes", body)[0] == 400, body


def test_a_large_body_is_not_read(ask):
    assert ask("/api/votes", b" " * (LARGEST_BODY + 1))[0] == 413


def test_no_path_leads_out(ask):
    for path in [
        "/pictures/../votes.sqlite",
        "/pictures/..%2fvotes.sqlite",
        "/pictures/%2e%2e/votes.sqlite",
        "/pictures/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/pictures/..%5cvotes.sqlite",
        "/pictures/%252e%252e%252fvotes.sqlite",
        "/pictures//etc/passwd",
        "/pictures/0000.png",
        "/pictures/",
        "/pictures/%00",
        "//etc/passwd",
        "/../../etc/passwd",
        "/static/vote.js",
        "/secret_one/0000.png",
        "/app.py",
        "/vote.html",
        "/results/",
        "/results.csv/../votes.sqlite",
    ]:
        status, _, body = ask(path)
        assert status == 404 and len(body) < 100, path


def test_pictures_that_change_are_not_served(ask, study, tmp_path):
    shown = json.loads(ask("/api/ballot?voter=anna")[2])["next"][0]
    assert ask(shown["left"])[0] == 200
    (tmp_path / "elsewhere.txt").write_text("private")
    for pair in study.pairs:
        for picture in (pair.a, pair.b):
            picture.path.unlink()
            picture.path.symlink_to(tmp_path / "elsewhere.txt")
    status, _, body = ask(shown["left"])
    assert status == 410 and b"private" not in body


def test_another_host_is_refused(ask, url):
    """A name that somebody else has made to point here (DNS rebinding)."""
    port = url.rstrip("/").rpartition(":")[2]
    other = ["evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1.evil.example:{port}", ""]
    for host in other:
        assert ask("/api/ballot?voter=anna", headers={"Host": host})[0] == 421, host
    assert ask("/", headers={"Host": f"localhost:{port}"})[0] == 200


def test_what_a_foreign_page_could_send_is_refused(ask, database):
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ):
        assert ask("/api/votes", ballot(), headers=headers)[0] in (403, 415), headers
    assert database.record().votes == ()


def test_the_pages_own_requests_pass(ask, url):
    headers = {"Origin": url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert ask("/api/votes", ballot(), headers=headers)[0] == 200


def test_every_answer_has_its_policy(ask):
    for path in ("/", "/results", "/api/ballot?voter=x", "/nothing"):
        headers = ask(path)[1]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers and "server" not in headers


def test_other_methods(ask):
    assert [ask("/api/votes")[0], ask("/api/undo", {}, "PUT")[0], ask("/", {}, "DELETE")[0]] == [405] * 3


def test_undo_of_what_is_not_ones_own(ask, database):
    assert ask("/api/votes", ballot())[0] == 200
    assert ask("/api/undo", {"vote": "0123456789", "voter": "ben"})[0] == 409
    assert len(database.record().votes) == 1


def test_exports(ask):
    ask("/api/votes", ballot(pair=4))
    assert ask("/results.csv")[1]["content-type"].startswith("text/csv")
    assert b"anna,a cat,Animals,Basic" in ask("/results.csv")[2]
    assert json.loads(ask("/results.json")[2])["voted_pairs"] == 1
    assert b"By category" in ask("/results")[2]


def test_a_port_that_is_taken(study, database):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port}: could not be served"):
            vote_server(study, database, port=port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_here(study, database, host):
    with pytest.raises(InputError, match=rf"{host}:8021: could not be served \(.*\); another --host\?"):
        vote_server(study, database, host=host)


def test_every_address_takes_addresses_but_no_names(study, tmp_path):
    database = open_study(tmp_path / "any.sqlite", study)
    with vote_server(study, database, host="0.0.0.0", port=0).running() as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        for host, status in (("192.168.1.5", 200), ("evil.example", 421)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/", headers={"Host": f"{host}:{port}"})
            assert connection.getresponse().status == status
            connection.close()
    database.close()
