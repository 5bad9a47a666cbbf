from __future__ import annotations

import dataclasses
import sqlite3
import threading

import pytest

from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.vote.blinding import a_is_left, pair_order, picture_token
from bitsfusion.vote.database import Conflict, open_study, open_votes
from bitsfusion.vote.prompts import Topic


def cast(database, vote, voter, pair, left=True):
    database.cast(vote, voter, pair, left=left, milliseconds=1500)


def test_a_vote_is_kept_with_its_side(database):
    for pair in range(6):
        cast(database, f"vote-{pair}", "anna", pair, left=pair % 2 == 0)
    votes = database.record().votes
    assert [vote.pair for vote in votes] == list(range(6))
    for vote in votes:
        assert (vote.on_left == "a") == a_is_left("seven", "anna", vote.pair)
        assert (vote.choice == vote.on_left) == (vote.pair % 2 == 0)
        assert vote.milliseconds == 1500 and vote.cast_at.endswith("Z")


def test_the_same_vote_again_is_no_second_one(database):
    for vote in ("first", "first", "again"):
        cast(database, vote, "anna", 2)
    assert len(database.record().votes) == 1
    with pytest.raises(Conflict, match="voted for the other picture"):
        cast(database, "other", "anna", 2, left=False)
    with pytest.raises(Conflict, match="was sent before"):
        cast(database, "first", "anna", 3)
    with pytest.raises(InputError, match="got 6, wanted 0 to 5"):
        cast(database, "far", "anna", 6)
    assert len(database.record().votes) == 1


def test_undo_takes_back_the_last_vote_once(database):
    first, second = database.standing("anna").waiting[:2]
    cast(database, "one", "anna", first)
    cast(database, "two", "anna", second)
    cast(database, "bens", "ben", first)
    with pytest.raises(Conflict):
        database.withdraw("one", "anna")
    with pytest.raises(Conflict):
        database.withdraw("two", "ben")
    for _ in range(2):  # sent twice
        database.withdraw("two", "anna")
    assert database.standing("anna").last == "one" and database.standing("anna").waiting[0] == second
    cast(database, "two", "anna", second)  # arrives late
    assert database.standing("anna").waiting[0] == second
    cast(database, "three", "anna", second, left=False)
    assert database.standing("anna").last == "three"
    assert [(vote.voter, vote.pair) for vote in database.record().votes] == [
        ("anna", first),
        ("ben", first),
        ("anna", second),
    ]


def test_a_restart_goes_on(database, study):
    order = database.standing("anna").waiting
    cast(database, "one", "anna", order[0])
    database.close()
    again = open_study(database.path, study, seed="another")
    assert again.seed == "seven"
    assert again.standing("anna").waiting == order[1:] and again.standing("anna").last == "one"
    again.close()


def test_other_pictures_are_refused(database, study):
    swapped = dataclasses.replace(
        study, pairs=tuple(dataclasses.replace(pair, a=pair.b, b=pair.a) for pair in study.pairs)
    )
    for other in (swapped, dataclasses.replace(study, pairs=study.pairs[:-1])):
        with pytest.raises(InputError, match="holds votes on 6 pairs"):
            open_study(database.path, other)


def test_topics_may_come_later(tmp_path, study):
    bare = dataclasses.replace(study, pairs=tuple(dataclasses.replace(pair, topic=Topic()) for pair in study.pairs))
    path = tmp_path / "later.sqlite"
    for given in (bare, study, bare):
        opened = open_study(path, given)
        topics = opened.record().topics
        opened.close()
    assert topics == tuple(pair.topic for pair in study.pairs)


def test_what_is_no_file_of_votes(tmp_path, study):
    with pytest.raises(InputError, match="no such file"):
        open_votes(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database, but long enough to have a header of some kind" * 20)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE t (x)")
    other.close()
    for name in ("text.sqlite", "other.sqlite"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(InputError, match="wanted the votes of"):
            open_votes(tmp_path / name)
        with pytest.raises(InputError, match="wanted the votes of"):
            open_study(tmp_path / name, study)
        if name == "text.sqlite":
            assert (tmp_path / name).read_bytes() == before
    with pytest.raises(BitsFusionError, match="could not be opened"):
        open_study(tmp_path / "no" / "folder.sqlite", study)


def test_a_file_of_votes_without_its_study(tmp_path, study):
    open_study(tmp_path / "v.sqlite", study).close()
    with sqlite3.connect(tmp_path / "v.sqlite") as connection:
        connection.execute("DELETE FROM study")
    connection.close()
    for opened in (open_votes, lambda path: open_study(path, study)):
        with pytest.raises(InputError, match="got a file without a study"):
            opened(tmp_path / "v.sqlite")


def test_two_processes_at_once(database, study):
    """Two connections to one file, as two servers have, from several threads."""
    other = open_study(database.path, study)
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for pair in range(6):
            for connection in (database, other):
                cast(connection, f"vote-{number}-{pair}", f"voter{number}", pair)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert len(database.record().votes) == 8 * 6


def test_sides_are_fair_coins():
    """The share on the left of 4000 is within 4 standard deviations of a half, for pairs and voters alike."""
    sides = [a_is_left("seed", f"voter{i % 20}", i // 20) for i in range(4000)]
    assert abs(sum(sides) / 4000 - 0.5) < 4 * 0.5 / 4000**0.5
    same = [a_is_left("seed", "anna", i) == a_is_left("seed", "ben", i) for i in range(4000)]
    assert abs(sum(same) / 4000 - 0.5) < 4 * 0.5 / 4000**0.5
    assert sides != [a_is_left("other", f"voter{i % 20}", i // 20) for i in range(4000)]


def test_order_and_names_come_from_the_seed():
    order = pair_order("seed", 50)
    assert sorted(order) == list(range(50)) and order != list(range(50))
    assert order == pair_order("seed", 50) != pair_order("other", 50)
    tokens = {picture_token(seed, pair, side) for seed in "xy" for pair in range(50) for side in "ab"}
    assert len(tokens) == 200
