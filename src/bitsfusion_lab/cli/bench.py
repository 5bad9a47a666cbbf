"""`bitsfusion bench`: a packed folder beside the dense model and other quantizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bitsfusion.cli.console import print_json, print_table, progress_bars
from bitsfusion.cli.interruption import resumable
from bitsfusion.cli.options import Json, Quiet
from bitsfusion.io.texts import write_json
from bitsfusion_lab.bench.bench_file import BenchResult, BenchRow, BenchSettings, Dtype
from bitsfusion_lab.bench.machine import physical_memory
from bitsfusion_lab.bench.methods import chosen_peers
from bitsfusion_lab.bench.run import bench as run_bench
from bitsfusion_lab.bench.subject import find_subject

MEMORY_SHARE = 0.8


def bench(
    folder: Annotated[Path, typer.Argument(help="A packed pipeline or model folder.")],
    against: Annotated[str, typer.Option(help='The dense model: a folder, a hub id, or "embedded".')],
    peers: Annotated[
        str, typer.Option(help="all (that are installed), none, or names separated by commas: quanto,gguf-q4_0.")
    ] = "all",
    dtype: Annotated[Dtype, typer.Option(help="Dtype that everything computes in.")] = Dtype.BF16,
    latent: Annotated[int, typer.Option(min=8, help="Height and width of the latent.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Latents in a batch.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Timed forwards of each method.")] = 7,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each process.", show_default="all cores")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=1, help="GB that the methods may hold together while they are timed.", show_default="80 % of all"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Result file to write.")] = Path("bench.json"),
    work: Annotated[
        Path | None, typer.Option(help="Folder for what the peers save.", show_default="beside the result")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compares size, fidelity, load time, memory and CPU speed with the dense model and other quantizers."""
    settings = BenchSettings(
        dtype=dtype,
        latent=latent,
        batch=batch,
        repeats=repeats,
        threads=threads or os.cpu_count() or 1,
        memory_bytes=int(memory * 1e9) if memory else int(MEMORY_SHARE * physical_memory()),
    )
    chosen = chosen_peers(peers)
    subject = find_subject(folder, against)
    with progress_bars(quiet or json) as progress, resumable():
        result = run_bench(
            subject,
            chosen,
            settings,
            work or out.with_suffix(".work"),
            progress=lambda done, total, note: progress.update("bench", done, total, note),
        )
    write_json(out, result.model_dump(mode="json"))
    if json:
        print_json(result.model_dump(mode="json"))
    else:
        _print(result, out)


def _print(result: BenchResult, out: Path) -> None:
    sizes = ["method", "MB disk", "MB memory", "bits", "% dense", "SQNR dB", "error"]
    print_table(sizes, [_size_line(row) for row in result.rows])
    speeds = ["method", "load s", "MB peak", "forward s", "x dense", "quantize s"]
    print_table(speeds, [_speed_line(row) for row in result.rows])
    settings = result.settings
    shape = f"batch {settings.batch}, {settings.latent}x{settings.latent} latents, {settings.dtype.value}"
    print(f"{shape}, {settings.threads} threads, {result.machine['cpu']}, kernel {result.machine['kernel']['name']}")
    for row in result.rows:
        if row.error is not None:
            print(f"{row.name}: {row.error}")
    if result.not_installed:
        print(f"not installed: {', '.join(result.not_installed)} (pip install 'bitsfusion[peers]')")
    print("bits: 8 x bytes on disk / all weights; % dense: weights left as they were; error: of the output, to float32")
    print(f"everything: {out}")


def _size_line(row: BenchRow) -> list[str]:
    dense = None if row.weights is None or row.weights_dense is None else 100 * row.weights_dense / row.weights
    return [
        row.name,
        _show(row.bytes_on_disk, ".1f", 1e6),
        _show(row.bytes_in_memory, ".1f", 1e6),
        _show(row.bits_on_disk, ".2f"),
        _show(dense, ".1f"),
        _show(row.sqnr_db, ".1f"),
        _show(row.output_error, ".4f"),
    ]


def _speed_line(row: BenchRow) -> list[str]:
    return [
        row.name,
        _show(row.load_seconds, ".2f"),
        _show(row.peak_rss, ".0f", 1e6),
        _show(row.forward_median, ".2f"),
        _show(row.forward_ratio, ".2f"),
        _show(row.prepare_seconds, ".1f"),
    ]


def _show(value: float | None, form: str, unit: float = 1) -> str:
    return "" if value is None else format(value / unit, form)
