from __future__ import annotations

import csv
import io
import itertools
import random

import pytest
from PIL import Image

from bitsfusion.errors import InputError
from bitsfusion.metrics.intervals import wilson_interval
from bitsfusion.vote.database import Record, Vote
from bitsfusion.vote.figures import write_figures
from bitsfusion.vote.prompts import Topic
from bitsfusion.vote.results import agreement, vote_results, votes_csv
from bitsfusion.vote.results_page import results_page, verdict


def record(choices: dict[str, str], topics: list[Topic] | None = None) -> Record:
    """`choices`: voter -> a letter a pair, `.` for none; odd pairs have A on the right."""
    count = max(map(len, choices.values()), default=0)
    votes = [
        Vote(voter, pair, choice, "ab"[pair % 2], 1000 * (pair + 1), "2026-01-01T00:00:00.000Z")
        for voter, letters in choices.items()
        for pair, choice in enumerate(letters)
        if choice != "."
    ]
    known = topics or [Topic()] * count
    return Record(("mine", "theirs"), tuple(f"prompt {i}" for i in range(count)), tuple(known), tuple(votes))


def test_the_papers_votes():
    """Section 5: 888 of 1632, 54.4 %. Wilson's interval by its formula, worked out by hand: .520 to .568."""
    result = vote_results(record({"all": "a" * 888 + "b" * 744}))
    assert (result.votes.a, result.votes.b) == (888, 744)
    assert result.votes.share == pytest.approx(0.5441, abs=5e-5)
    assert (result.votes.low, result.votes.high) == pytest.approx((0.5199, 0.5682), abs=2e-4)
    assert verdict(result) == "mine is preferred."


def test_counts_by_hand():
    topics = [Topic("X", "p"), Topic("X", "q"), Topic("Y", "p"), Topic("Y", "q"), Topic("", "")]
    result = vote_results(record({"anna": "aabb.", "ben": "abba.", "carla": "a...."}, topics))
    assert (result.votes.a, result.votes.b) == (5, 4)
    assert [(rate.name, rate.a, rate.b) for rate in result.categories] == [("X", 4, 1), ("Y", 1, 3)]
    assert [(rate.name, rate.a, rate.b) for rate in result.challenges] == [("p", 3, 2), ("q", 2, 2)]
    assert (result.majorities.a, result.majorities.b, result.ties) == (1, 1, 2)
    assert (result.pairs, result.voted_pairs) == (5, 4)
    assert result.left.a == 5  # a of pairs 0 three times, b of pair 1 once, b of pair 3 once
    assert [(voter.voter, voter.votes, voter.a, voter.median_seconds) for voter in result.voters] == [
        ("anna", 4, 2, 2.5),
        ("ben", 4, 2, 2.5),
        ("carla", 1, 1, 1.0),
    ]
    assert (result.categories[0].low, result.categories[0].high) == wilson_interval(4, 5)
    assert verdict(result).startswith("No preference")


def test_many_votes_on_few_pairs_are_not_enough():
    """Twenty voters who are of one mind on 20 pairs, 13 : 7: 260 of 400 votes, but the pairs could be luck."""
    voters = {f"v{number}": "a" * 13 + "b" * 7 for number in range(20)}
    crowd = vote_results(record(voters))
    assert crowd.votes.low is not None and crowd.votes.low > 0.6
    assert verdict(crowd) == "No preference is shown: pairs have several votes, and their majorities do not show it."
    alone = vote_results(record({"v0": "a" * 260 + "b" * 140}))
    assert verdict(alone) == "mine is preferred."
    clear = vote_results(record({f"v{number}": "b" * 18 + "a" * 2 for number in range(3)}))
    assert verdict(clear) == "theirs is preferred."


def test_fleiss_kappa_by_hand():
    """Three pairs, two voters, (2,0), (1,1), (0,2): agreement 2/3, chance 1/2, kappa 1/3."""
    found = agreement([(2, 0), (1, 1), (0, 2), (1, 0), (0, 0)])
    assert (found.pairs, found.share, found.kappa) == (3, pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_agreement_by_counting_pairs_of_voters():
    draws = random.Random(0)
    votes = [[draws.random() < 0.7 for _ in range(draws.randrange(2, 7))] for _ in range(200)]
    found = agreement([(sum(own), len(own) - sum(own)) for own in votes])
    shares = [[x == y for x, y in itertools.combinations(own, 2)] for own in votes]
    share = sum(sum(own) / len(own) for own in shares) / len(shares)
    every = [vote for own in votes for vote in own]
    chance = sum((every.count(side) / len(every)) ** 2 for side in (True, False))
    assert found.share == pytest.approx(share) and found.kappa == pytest.approx((share - chance) / (1 - chance))


def test_agreement_at_its_ends():
    assert agreement([(1, 0), (0, 1)]) == agreement([])
    assert agreement([(3, 0), (0, 3)]).kappa == 1
    assert (agreement([(2, 0), (3, 0)]).share, agreement([(2, 0), (3, 0)]).kappa) == (1, None)


def test_no_votes():
    result = vote_results(record({"anna": "..."}))
    assert result.votes.share is None and result.voters == () and result.agreement.share is None
    assert "No votes yet" in results_page(result)
    with pytest.raises(InputError, match="got no votes"):
        write_figures(result, None)  # type: ignore[arg-type]


def test_csv_has_a_row_a_vote():
    rows = list(csv.DictReader(io.StringIO(votes_csv(record({"anna": "ab"}, [Topic("X, Y", "p"), Topic()])))))
    assert [(row["choice"], row["preferred"], row["left"]) for row in rows] == [
        ("A", "mine", "A"),
        ("B", "theirs", "B"),
    ]
    assert rows[0]["category"] == "X, Y" and rows[1]["seconds"] == "2.000" and rows[0]["prompt"] == "prompt 0"


def test_figures_split_at_the_share(tmp_path):
    """In the picture of one bar, the blue part is as wide as A's share."""
    topics = [Topic("X", "p")] * 4
    paths = write_figures(vote_results(record({"anna": "aaab"}, topics)), tmp_path / "figures")
    assert [path.name for path in paths] == ["overall.png", "categories.png", "challenges.png"]
    image = Image.open(paths[0]).convert("RGB")
    blue, grey = (31, 93, 184), (201, 199, 194)
    rows = [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)]
    counts = [(row.count(blue), row.count(grey)) for row in rows]
    a, b = max(counts, key=sum)
    assert a / (a + b) == pytest.approx(0.75, abs=0.01) and a + b > image.width / 3


def test_the_page_escapes_what_people_typed():
    page = results_page(vote_results(record({"<i>": "ab"}, [Topic("<u>", "&")] * 2)))
    assert "<i>" not in page and "<u>" not in page and "&lt;u&gt;" in page
    assert "style=" not in page and "<script" not in page  # the page's policy allows neither
