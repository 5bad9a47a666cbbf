"""The results of a vote: win rates overall, by category and by challenge, with Wilson's intervals (section 5)."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Literal

from bitsfusion.io.schema import Checked
from bitsfusion.metrics.intervals import wilson_interval
from bitsfusion.vote.database import Record, Vote

SCHEMA_VERSION: Literal[1] = 1
QUESTION = "Which image has better aesthetics and image-text alignment?"


class WinRate(Checked):
    """How many trials A and B won; `share` is A's, with its 95 % interval, and None where there were no trials."""

    name: str
    a: int
    b: int
    share: float | None
    low: float | None
    high: float | None


class VoterResult(Checked):
    """One voter: how many votes, how many of them for A, and the median seconds a vote took."""

    voter: str
    votes: int
    a: int
    median_seconds: float


class Agreement(Checked):
    """How far the voters agree, over the pairs with two votes or more.

    Fields:
        pairs: how many those are.
        share: the mean over them of the share of their pairs of voters who chose the same picture; None without any.
        kappa: Fleiss' kappa, (share - chance) / (1 - chance), where chance is what the same shares of A and B over all
            votes would give by luck: 1 is full agreement, 0 that of coins. None where every vote is for one side.
    """

    pairs: int
    share: float | None
    kappa: float | None


class VoteResults(Checked):
    """The results of a study; as JSON, what `bitsfusion vote --results FILE --json` prints.

    Fields:
        names: of A and B. pairs: all there are; voted_pairs: those with a vote.
        votes: every vote is a trial. With several voters these are not independent; then `majorities` is the safer one:
        majorities: every pair is a trial, won by the side with more votes; `ties` have as many for both.
        left: how often the picture on the left was chosen ("a" counts left): far from a half, voters were not looking.
        categories, challenges: of votes, by PartiPrompts' labels, in alphabetical order.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    question: str
    names: tuple[str, str]
    pairs: int
    voted_pairs: int
    votes: WinRate
    majorities: WinRate
    ties: int
    left: WinRate
    categories: tuple[WinRate, ...]
    challenges: tuple[WinRate, ...]
    agreement: Agreement
    voters: tuple[VoterResult, ...]


def vote_results(record: Record) -> VoteResults:
    """Counts a study's votes."""
    by_pair = Counter((vote.pair, vote.choice) for vote in record.votes)
    counts = [(by_pair[pair, "a"], by_pair[pair, "b"]) for pair in range(len(record.prompts))]
    return VoteResults(
        question=QUESTION,
        names=record.names,
        pairs=len(counts),
        voted_pairs=sum(a + b > 0 for a, b in counts),
        votes=_rate("all", (vote.choice == "a" for vote in record.votes)),
        majorities=_rate("majority of each pair", (a > b for a, b in counts if a != b)),
        ties=sum(a == b > 0 for a, b in counts),
        left=_rate("left", (vote.choice == vote.on_left for vote in record.votes)),
        categories=_by(record, lambda vote: record.topics[vote.pair].category),
        challenges=_by(record, lambda vote: record.topics[vote.pair].challenge),
        agreement=agreement(counts),
        voters=tuple(_voter(name, record.votes) for name in sorted({vote.voter for vote in record.votes})),
    )


def agreement(counts: Sequence[tuple[int, int]]) -> Agreement:
    """The agreement from each pair's votes for A and for B; pairs with fewer than two are left out.

    Fleiss (1971) has the same number of voters at every item; here, as is usual, each item weighs the same,
    however many voters it has.
    """
    seen = [(a, b) for a, b in counts if a + b >= 2]
    if not seen:
        return Agreement(pairs=0, share=None, kappa=None)
    share = sum((a * (a - 1) + b * (b - 1)) / ((a + b) * (a + b - 1)) for a, b in seen) / len(seen)
    for_a, total = sum(a for a, _ in seen), sum(a + b for a, b in seen)
    chance = (for_a / total) ** 2 + (1 - for_a / total) ** 2
    kappa = None if for_a in (0, total) else (share - chance) / (1 - chance)
    return Agreement(pairs=len(seen), share=share, kappa=kappa)


def votes_csv(record: Record) -> str:
    """One row for each vote, in the order of casting; `preferred` is the folder's name."""
    names = dict(zip("ab", record.names, strict=True))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["voter", "prompt", "category", "challenge", "choice", "preferred", "left", "seconds", "time"])
    for vote in record.votes:
        topic = record.topics[vote.pair]
        rows.writerow(
            [
                vote.voter,
                record.prompts[vote.pair],
                topic.category,
                topic.challenge,
                vote.choice.upper(),
                names[vote.choice],
                vote.on_left.upper(),
                f"{vote.milliseconds / 1000:.3f}",
                vote.cast_at,
            ]
        )
    return text.getvalue()


def _rate(name: str, wins: Iterable[bool]) -> WinRate:
    won = Counter(wins)
    trials = won.total()
    if not trials:
        return WinRate(name=name, a=0, b=0, share=None, low=None, high=None)
    low, high = wilson_interval(won[True], trials)
    return WinRate(name=name, a=won[True], b=won[False], share=won[True] / trials, low=low, high=high)


def _by(record: Record, label: Callable[[Vote], str]) -> tuple[WinRate, ...]:
    """A rate for each label that has votes; votes without a label are left out."""
    labels = sorted({label(vote) for vote in record.votes} - {""})
    return tuple(_rate(name, (vote.choice == "a" for vote in record.votes if label(vote) == name)) for name in labels)


def _voter(name: str, votes: Sequence[Vote]) -> VoterResult:
    own = [vote for vote in votes if vote.voter == name]
    times = [vote.milliseconds for vote in own]
    return VoterResult(
        voter=name,
        votes=len(own),
        a=sum(vote.choice == "a" for vote in own),
        median_seconds=median(times) / 1000,
    )
