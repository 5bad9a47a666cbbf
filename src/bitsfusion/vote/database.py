"""The votes in an SQLite file. Each counts once, even if it is sent twice, concurrently, or after a restart."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bitsfusion.errors import BitsFusionError, InputError
from bitsfusion.vote.blinding import a_is_left, pair_order
from bitsfusion.vote.pictures import Study
from bitsfusion.vote.prompts import Topic

APPLICATION_ID = 0x62667674
SCHEMA_VERSION = 1
_WAIT_SECONDS = 30.0
_SCHEMA = """
CREATE TABLE study (
    seed TEXT NOT NULL,
    name_a TEXT NOT NULL,
    name_b TEXT NOT NULL
) STRICT;
CREATE TABLE pairs (
    pair INTEGER PRIMARY KEY,
    prompt TEXT NOT NULL,
    category TEXT NOT NULL,
    challenge TEXT NOT NULL,
    sha256_a TEXT NOT NULL,
    sha256_b TEXT NOT NULL
) STRICT;
CREATE TABLE votes (
    vote TEXT PRIMARY KEY,
    voter TEXT NOT NULL,
    pair INTEGER NOT NULL REFERENCES pairs,
    choice TEXT NOT NULL CHECK (choice IN ('a', 'b')),
    on_left TEXT NOT NULL CHECK (on_left IN ('a', 'b')),
    milliseconds INTEGER NOT NULL CHECK (milliseconds >= 0),
    cast_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    withdrawn_at TEXT
) STRICT;
CREATE UNIQUE INDEX one_vote ON votes (voter, pair) WHERE withdrawn_at IS NULL;
"""


class Conflict(BitsFusionError):
    """A vote that contradicts one that is kept."""


@dataclass(frozen=True)
class Vote:
    """One vote that counts.

    Fields:
        choice: the preferred side, `a` or `b`. on_left: the side that was shown on the left.
        milliseconds: from when both pictures were shown. cast_at: UTC, ISO 8601.
    """

    voter: str
    pair: int
    choice: str
    on_left: str
    milliseconds: int
    cast_at: str


@dataclass(frozen=True)
class Record:
    """All that results need: the two names, each pair's prompt and topic, and the votes in the order of casting."""

    names: tuple[str, str]
    prompts: tuple[str, ...]
    topics: tuple[Topic, ...]
    votes: tuple[Vote, ...]


@dataclass(frozen=True)
class Standing:
    """How far a voter is: pairs still to vote on, in their order, and the last vote's id, which can be taken back."""

    waiting: tuple[int, ...]
    last: str | None


class VoteDatabase:
    """A study's votes in one file; usable from several threads, and several processes may have it open."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Use `open_study` or `open_votes`."""
        self.path = path
        self._connection = connection
        self._one_at_a_time = threading.Lock()
        with self._transaction() as run:
            study = run.execute("SELECT seed FROM study").fetchone()
            if study is None:
                raise InputError(f"{path}: wanted the votes of `bitsfusion vote`, got a file without a study")
            self.seed: str = study[0]
            self._order = pair_order(self.seed, run.execute("SELECT count(*) FROM pairs").fetchone()[0])

    def close(self) -> None:
        """Closes the file; every vote that was answered is already in it."""
        self._connection.close()

    @property
    def pairs(self) -> int:
        """The number of pairs to vote on."""
        return len(self._order)

    def cast(self, vote: str, voter: str, pair: int, *, left: bool, milliseconds: int) -> None:
        """Keeps a vote. The same vote again changes nothing, nor does one that was taken back.

        Args:
            vote: an id that the voter's page generates.
            left: whether the picture on the left is preferred.

        Raises:
            Conflict: this voter has voted otherwise on this pair, or the id belongs to another vote.
            InputError: no such pair.
        """
        if not 0 <= pair < self.pairs:
            raise InputError(f"pair: got {pair}, wanted 0 to {self.pairs - 1}")
        on_left, on_right = ("a", "b") if a_is_left(self.seed, voter, pair) else ("b", "a")
        choice = on_left if left else on_right
        with self._transaction(write=True) as run:
            row = run.execute("SELECT voter, pair, choice FROM votes WHERE vote = ?", (vote,)).fetchone()
            if row is not None:
                if row != (voter, pair, choice):
                    raise Conflict(f"vote {vote}: was sent before with another voter, pair or choice")
                return
            kept = run.execute(
                "SELECT choice FROM votes WHERE voter = ? AND pair = ? AND withdrawn_at IS NULL", (voter, pair)
            ).fetchone()
            if kept is not None:
                if kept[0] != choice:
                    raise Conflict(f"pair {pair}: {voter} has voted for the other picture; undo that first")
                return
            run.execute(
                "INSERT INTO votes (vote, voter, pair, choice, on_left, milliseconds) VALUES (?, ?, ?, ?, ?, ?)",
                (vote, voter, pair, choice, on_left, milliseconds),
            )

    def withdraw(self, vote: str, voter: str) -> None:
        """Takes back the voter's last vote, which stays in the file, marked. Doing it twice changes nothing.

        Raises:
            Conflict: it is not this voter's last one.
        """
        with self._transaction(write=True) as run:
            row = run.execute("SELECT voter, withdrawn_at FROM votes WHERE vote = ?", (vote,)).fetchone()
            if row is not None and row[0] == voter and row[1] is not None:
                return
            if vote != _last(run, voter):
                raise Conflict(f"vote {vote}: is not the last one of {voter}")
            run.execute("UPDATE votes SET withdrawn_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now') WHERE vote = ?", (vote,))

    def standing(self, voter: str) -> Standing:
        """What this voter has still to vote on; for a new voter, everything."""
        with self._transaction() as run:
            voted = {
                row[0]
                for row in run.execute("SELECT pair FROM votes WHERE voter = ? AND withdrawn_at IS NULL", (voter,))
            }
            return Standing(tuple(pair for pair in self._order if pair not in voted), _last(run, voter))

    def record(self) -> Record:
        """Everything that was voted and not taken back."""
        with self._transaction() as run:
            names = run.execute("SELECT name_a, name_b FROM study").fetchone()
            pairs = run.execute("SELECT prompt, category, challenge FROM pairs ORDER BY pair").fetchall()
            votes = run.execute(
                "SELECT voter, pair, choice, on_left, milliseconds, cast_at FROM votes WHERE withdrawn_at IS NULL "
                "ORDER BY rowid"
            ).fetchall()
        return Record(
            (names[0], names[1]),
            tuple(row[0] for row in pairs),
            tuple(Topic(row[1], row[2]) for row in pairs),
            tuple(Vote(*row) for row in votes),
        )

    @contextmanager
    def _transaction(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """All or nothing, on disk when it ends."""
        with self._one_at_a_time, _read_or_written(self.path):
            self._connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def open_study(path: Path, study: Study, seed: str | None = None) -> VoteDatabase:
    """Opens the file of a study, or makes it; an earlier study continues.

    Args:
        seed: decides order and sides in a new file; random unless given.

    Raises:
        InputError: the file is something else, or holds votes on other pictures.
        BitsFusionError: it cannot be written.
    """
    connection = _connect(path, "rwc")
    with _closed_on_failure(connection), _read_or_written(path):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        if _kind(connection) == (0, 0) and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            _create(connection, study, seed or secrets.token_hex(16))
        else:
            _check(connection, path)
            _match(connection, path, study)
        connection.execute("COMMIT")
        return VoteDatabase(path, connection)


def open_votes(path: Path) -> VoteDatabase:
    """Opens the file of a study for its results, without its pictures.

    Raises:
        InputError: no such file, or something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, wanted the votes of `bitsfusion vote`")
    connection = _connect(path, "rw")
    with _closed_on_failure(connection), _read_or_written(path):
        _check(connection, path)
        return VoteDatabase(path, connection)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    try:
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=_WAIT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.OperationalError as error:
        raise BitsFusionError(f"{path}: could not be opened ({error})") from None


@contextmanager
def _closed_on_failure(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextmanager
def _read_or_written(path: Path) -> Iterator[None]:
    """Says in one line what SQLite refuses."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise BitsFusionError(f"{path}: could not be read or written ({error})") from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: wanted the votes of `bitsfusion vote`, got {error}") from error


def _kind(connection: sqlite3.Connection) -> tuple[int, int]:
    return (
        connection.execute("PRAGMA application_id").fetchone()[0],
        connection.execute("PRAGMA user_version").fetchone()[0],
    )


def _check(connection: sqlite3.Connection, path: Path) -> None:
    application, version = _kind(connection)
    if application != APPLICATION_ID:
        raise InputError(f"{path}: wanted the votes of `bitsfusion vote`, got another database")
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: got schema version {version}, wanted {SCHEMA_VERSION}")


def _create(connection: sqlite3.Connection, study: Study, seed: str) -> None:
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute("INSERT INTO study VALUES (?, ?, ?)", (seed, *study.names))
    connection.executemany(
        "INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?)",
        [
            (number, pair.prompt, pair.topic.category, pair.topic.challenge, pair.a.sha256, pair.b.sha256)
            for number, pair in enumerate(study.pairs)
        ],
    )
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _match(connection: sqlite3.Connection, path: Path, study: Study) -> None:
    """Checks that the pictures are those that were voted on; topics may be added later."""
    held = connection.execute("SELECT prompt, sha256_a, sha256_b FROM pairs ORDER BY pair").fetchall()
    here = [(pair.prompt, pair.a.sha256, pair.b.sha256) for pair in study.pairs]
    if held != here:
        same = len(set(held) & set(here))
        raise InputError(
            f"{path}: holds votes on {len(held)} pairs, {same} of which are among the {len(here)} pairs here; "
            "wanted the same pictures and prompts, or a new --database"
        )
    for number, pair in enumerate(study.pairs):
        if pair.topic != Topic():
            connection.execute(
                "UPDATE pairs SET category = ?, challenge = ? WHERE pair = ?",
                (pair.topic.category, pair.topic.challenge, number),
            )


def _last(run: sqlite3.Connection, voter: str) -> str | None:
    row = run.execute(
        "SELECT vote FROM votes WHERE voter = ? AND withdrawn_at IS NULL ORDER BY rowid DESC LIMIT 1", (voter,)
    ).fetchone()
    return None if row is None else str(row[0])
