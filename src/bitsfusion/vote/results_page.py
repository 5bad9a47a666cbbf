"""The results as a page without a script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bitsfusion.vote.results import VoteResults, WinRate

_BAR = 200
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Results</title>
<link rel="icon" href="/icon.svg">
<link rel="stylesheet" href="/vote.css">
</head>
<body class="results">
<main>
{body}
</main>
</body>
</html>
"""


def results_page(results: VoteResults) -> str:
    """The whole page: who was preferred, by how much, by category and challenge, and how far voters agree."""
    if results.votes.share is None:
        return _PAGE.format(body='<header><h1>No votes yet</h1></header><p><a href="/">Vote</a></p>')
    sections = [
        _head(results),
        _section("By category", results.categories),
        _section("By challenge", results.challenges),
        _voters(results),
        '<footer><a href="/results.csv">votes.csv</a> · <a href="/results.json">results.json</a> · '
        '<a href="/">Back to voting</a></footer>',
    ]
    return _PAGE.format(body="\n".join(section for section in sections if section))


def verdict(results: VoteResults) -> str:
    """One sentence: which side is preferred, only where the interval excludes a half.

    Votes on one pair are not independent: where some pair has several, the majorities have to show the same.
    """
    if results.votes.share is None:
        return "No votes yet."
    side = _preferred(results.votes)
    if side is None:
        return "No preference is shown: the interval holds 50 %."
    if results.agreement.pairs and _preferred(results.majorities) != side:
        return "No preference is shown: pairs have several votes, and their majorities do not show it."
    return f"{results.names[side]} is preferred."


def _preferred(rate: WinRate) -> int | None:
    """0 for A, 1 for B; None where the interval holds a half, or there is none."""
    if rate.low is None or rate.high is None or rate.low <= 0.5 <= rate.high:
        return None
    return 0 if rate.low > 0.5 else 1


def _head(results: VoteResults) -> str:
    votes, majorities = results.votes, results.majorities
    a, b = (escape(name) for name in results.names)
    trials = votes.a + votes.b
    facts = [
        ("Pairs voted on", f"{results.voted_pairs:,} of {results.pairs:,}"),
        (
            "By majority of each pair",
            f"{majorities.a:,} : {majorities.b:,}, {results.ties:,} even{_interval(majorities)}",
        ),
        ("Left image chosen", f"{_percent(results.left.share)}{_interval(results.left)}"),
        ("Voters in agreement", _agreed(results)),
    ]
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return (
        f'<header><p class="question">{escape(results.question)}</p><h1>{escape(verdict(results))}</h1></header>'
        f'<section class="overall"><div class="sides"><span><b>{_percent(votes.share)}</b> {a}</span>'
        f"<span>{b} <b>{_percent(None if votes.share is None else 1 - votes.share)}</b></span></div>"
        f"{_bar(votes)}"
        f"<p>{votes.a:,} : {votes.b:,} of {trials:,} votes. In brackets and as lines: 95 % intervals of A’s share"
        f"{_interval(votes)}; A is {a}.</p>"
        f'<dl class="facts">{rows}</dl></section>'
    )


def _section(title: str, rates: Sequence[WinRate]) -> str:
    if not rates:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(rate.name)}</th><td class="bar">{_bar(rate)}</td>'
        f"<td>{_percent(rate.share)}</td><td>{rate.a:,} : {rate.b:,}</td></tr>"
        for rate in rates
    )
    head = f'<th scope="col">{title[3:].capitalize()}</th><th scope="col"><span class="unseen">Share</span></th>'
    return (
        f"<section><h2>{title}</h2><table><thead><tr>{head}"
        f'<th scope="col">A</th><th scope="col">A : B</th></tr></thead><tbody>{rows}</tbody></table></section>'
    )


def _voters(results: VoteResults) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(voter.voter)}</th><td>{voter.votes:,}</td><td>{_percent(voter.a / voter.votes)}'
        f"</td><td>{voter.median_seconds:.1f} s</td></tr>"
        for voter in results.voters
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Voter", "Votes", "A", "Median"))
    return (
        f"<section><h2>Voters</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f'<p class="note">A is {escape(results.names[0])}, B is {escape(results.names[1])}.</p></section>'
    )


def _bar(rate: WinRate) -> str:
    """A's share, with its interval and a mark at a half."""
    if rate.share is None or rate.low is None or rate.high is None:
        return ""
    share, low, high = (_BAR * value for value in (rate.share, rate.low, rate.high))
    return (
        f'<svg class="share" viewBox="0 0 {_BAR} 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="b" width="{_BAR}" height="10"/><rect class="a" width="{share:.2f}" height="10"/>'
        f'<rect class="whisker" x="{low:.2f}" y="4" width="{high - low:.2f}" height="2"/>'
        f'<line class="half" x1="{_BAR / 2}" x2="{_BAR / 2}" y1="0" y2="10"/></svg>'
    )


def _agreed(results: VoteResults) -> str:
    agreement = results.agreement
    if agreement.share is None:
        return "no pair has two votes yet"
    kappa = "–" if agreement.kappa is None else f"{round(agreement.kappa, 2) + 0.0:.2f}".replace("-", "−")
    return f"{_percent(agreement.share)} on {agreement.pairs:,} pairs, Fleiss’ kappa {kappa}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _interval(rate: WinRate) -> str:
    return "" if rate.low is None or rate.high is None else f" ({100 * rate.low:.1f} – {100 * rate.high:.1f} %)"
