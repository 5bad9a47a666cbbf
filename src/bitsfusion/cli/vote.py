"""`bitsfusion vote`: which of two models' images people prefer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import typer

from bitsfusion.cli.console import print_json, print_table
from bitsfusion.cli.options import Json
from bitsfusion.errors import InputError
from bitsfusion.io.texts import write_text
from bitsfusion.vote.database import VoteDatabase, open_study, open_votes
from bitsfusion.vote.figures import write_figures
from bitsfusion.vote.pictures import read_study
from bitsfusion.vote.prompts import read_topics
from bitsfusion.vote.results import VoteResults, WinRate, vote_results, votes_csv
from bitsfusion.vote.results_page import verdict

if TYPE_CHECKING:
    from bitsfusion.vote.server import VoteServer


def vote(
    a: Annotated[Path | None, typer.Argument(help="Folder of images, as `bitsfusion generate` writes it.")] = None,
    b: Annotated[Path | None, typer.Argument(help="Another model's images of the same prompts.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="PartiPrompts.tsv, or a TSV like it: only its prompts are voted on, by category."),
    ] = None,
    database: Annotated[Path, typer.Option(help="File that keeps the votes. An existing one is continued.")] = Path(
        "votes.sqlite"
    ),
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to serve on.", show_default="8021, or any free one")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve on; any other than the default lets other computers in.")
    ] = "127.0.0.1",
    voter: Annotated[str | None, typer.Option(help="Your name; the page asks for one otherwise.")] = None,
    results: Annotated[Path | None, typer.Option(help="Print the results of this file and serve nothing.")] = None,
    csv: Annotated[Path | None, typer.Option(help="With --results: write every vote to this file.")] = None,
    figures: Annotated[Path | None, typer.Option(help="With --results: write bar charts to this folder.")] = None,
    json: Json = False,
) -> None:
    """Serves a page where people choose the better of two images, or prints the results."""
    if results is not None:
        if a is not None:
            raise InputError("vote: got folders and --results, wanted one of them")
        _results(results, csv, figures, json)
        return
    if a is None or b is None:
        raise InputError("vote: wanted two folders of images, or --results FILE")
    if csv or figures or json:
        raise InputError("vote: --csv, --figures and --json go with --results FILE")
    _serve(a, b, prompts, database, host, port, voter)


def _serve(a: Path, b: Path, prompts: Path | None, path: Path, host: str, port: int | None, voter: str | None) -> None:
    try:
        from bitsfusion.vote.app import check_voter
        from bitsfusion.vote.server import vote_server
    except ModuleNotFoundError as error:
        raise InputError(f"vote: {error.name} is not installed, wanted pip install 'bitsfusion[vote]'") from None
    asked = "" if voter is None else "?" + urlencode({"voter": check_voter(voter)})
    study = read_study(a, b, None if prompts is None else read_topics(prompts))
    votes = open_study(path, study)
    try:
        server = vote_server(study, votes, host, port)
        print(f"{len(study.pairs)} pairs; votes are kept in {path}")
        for name, count in zip(study.names, study.left_out, strict=True):
            if count:
                print(f"left out: {count} images of {name} without a counterpart or a prompt of the TSV")
        print(f"{server.url}{asked}\nCtrl-C ends it; the same command continues.", flush=True)
        _until_interrupted(server)
        _print_standing(votes, path)
    finally:
        votes.close()


def _until_interrupted(server: VoteServer) -> None:
    try:
        server.run()
    except KeyboardInterrupt:
        print()


def _print_standing(votes: VoteDatabase, path: Path) -> None:
    found = vote_results(votes.record())
    given = found.votes.a + found.votes.b
    print(f"votes: {given}, voters: {len(found.voters)}; results: bitsfusion vote --results {path}")


def _results(path: Path, csv: Path | None, figures: Path | None, json: bool) -> None:
    votes = open_votes(path)
    try:
        record = votes.record()
    finally:
        votes.close()
    found = vote_results(record)
    if csv is not None:
        write_text(csv, votes_csv(record))
    if figures is not None:
        write_figures(found, figures)
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        _print(found)


def _print(found: VoteResults) -> None:
    rates = [
        ("all votes", found.votes),
        ("pairs, by majority", found.majorities),
        *((f"category: {rate.name}", rate) for rate in found.categories),
        *((f"challenge: {rate.name}", rate) for rate in found.challenges),
        ("left image chosen", found.left),
    ]
    print(f"A: {found.names[0]}\nB: {found.names[1]}\n{found.question}")
    print_table(["", "A", "B", "A wins", "95 %"], [[name, str(r.a), str(r.b), *_share(r)] for name, r in rates])
    agreed = found.agreement
    if agreed.share is not None:
        kappa = "–" if agreed.kappa is None else f"{agreed.kappa:.2f}"
        print(f"voters agree: {agreed.share:.1%} on {agreed.pairs} pairs, Fleiss' kappa {kappa}")
    print(f"pairs voted on: {found.voted_pairs} of {found.pairs}, voters: {len(found.voters)}")
    print(verdict(found))


def _share(rate: WinRate) -> tuple[str, str]:
    if rate.share is None or rate.low is None or rate.high is None:
        return "–", ""
    return f"{rate.share:.1%}", f"{rate.low:.1%} to {rate.high:.1%}"
