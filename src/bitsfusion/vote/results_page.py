"""The results as a page without a script."""

from __future__ import annotations

from bitsfusion.io.templates import environment
from bitsfusion.vote.results import VoteResults, WinRate


def results_page(results: VoteResults) -> str:
    """The whole page: who was preferred, by how much, by category and challenge, and how far voters agree."""
    kappa = results.agreement.kappa
    shown = "–" if kappa is None else f"{round(kappa, 2) + 0.0:.2f}".replace("-", "−")
    page = environment("bitsfusion.vote").get_template("results.html")
    return page.render(results=results, verdict=verdict(results), kappa=shown).lstrip()


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
