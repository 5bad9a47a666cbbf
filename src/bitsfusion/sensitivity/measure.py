"""Measures every layer at 1, 2 and 3 bits and writes the table; resumes where it was stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from bitsfusion.architectures.layers import LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.data.batches import TrainingData
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.diffusion.time_features import BASIS, choose_features
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_json
from bitsfusion.progress import Progress, silent
from bitsfusion.sensitivity.journal import only_writer, row_journal
from bitsfusion.sensitivity.paper import ImageDistance, TextImageScorer
from bitsfusion.sensitivity.settings import Settings
from bitsfusion.sensitivity.table import MEASURED_BITS, Candidate, SensitivityTable, read_table, write_table
from bitsfusion.sensitivity.workers import Workers, one_process

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Counted: TypeAlias = Sequence[tuple[str, int]] | Literal["basis"] | None
"""What a recipe is to count for time features: rows of (name, steps), a basis for every step, or (None) the layers."""

PNDM_50 = (("pndm", 50),)


def analyze(
    pipeline: DiffusionPipeline,
    settings: Settings,
    out_path: Path,
    data: TrainingData,
    *,
    model: str,
    source_sha256: str | None,
    samplers: Counted = PNDM_50,
    scorer: TextImageScorer | None = None,
    lpips: ImageDistance | None = None,
    workers: Workers | None = None,
    progress: Progress = silent,
) -> SensitivityTable:
    """The sensitivity table of `pipeline`'s denoiser, written to `out_path`.

    Rows are kept in a journal beside `out_path` as they are measured. Called again with the same model, settings
    and data, it measures only what is missing; a row does not depend on which rows were measured before it.

    Args:
        pipeline: full precision, float32; its denoiser is as before afterwards.
        settings: of the method wanted: `NoiseErrorSettings`, `JacobianSettings` or `PaperSettings`.
        data: latents and captions that the candidates are measured or trained on.
        model, source_sha256: name and hash of the pipeline, as the table records them.
        samplers: see `Counted`; where no basis is worth it, the time layers' own 8 bits are counted.
        scorer: for the CLIP drop, of the paper's method; none means null.
        lpips: of the paper's method; none means null.
        workers: what measures; by default this process. The rows do not depend on it.

    Raises:
        InputError: weights that are not finite (names them), or nothing to quantize.
        BitsFusionError: a measured error is not finite (names the layer), or the disk is full.
    """
    table = empty_table(
        pipeline,
        settings,
        data,
        model=model,
        source_sha256=source_sha256,
        samplers=samplers,
        clip_scorer=scorer is not None,
        lpips=lpips is not None,
    )
    wanted = candidates(table)
    finished = _finished(out_path, table, wanted)
    if finished is not None:
        progress(len(wanted), len(wanted))
        return finished

    journal = row_journal(out_path, table.sha256())
    with only_writer(out_path):
        rows = {Candidate(row.layer, row.bits): row for row in journal.open() if (row.layer, row.bits) in set(wanted)}
        progress(len(rows), len(wanted))
        missing = [candidate for candidate in wanted if candidate not in rows]
        if missing:
            workers = workers or one_process(pipeline, settings, data, scorer, lpips)
            with contextlib.closing(workers.rows(missing)) as measured:
                for row in measured:
                    journal.append([row])
                    rows[Candidate(row.layer, row.bits)] = row
                    progress(len(rows), len(wanted))
        table = table.model_copy(update={"rows": [rows[candidate] for candidate in wanted]})
        write_table(out_path, table)
        journal.remove()
    return table


def empty_table(
    pipeline: Any,
    settings: Settings,
    data: TrainingData,
    *,
    model: str,
    source_sha256: str | None,
    samplers: Counted = PNDM_50,
    clip_scorer: bool = False,
    lpips: bool = False,
) -> SensitivityTable:
    """What is to be measured, without rows; its hash names the measurement. Arguments and errors as `analyze`."""
    denoiser = pipeline_denoiser(pipeline)
    layers = model_layers(denoiser)
    by_role = {role: {n: info.numel for n, info in layers.items() if info.role is role} for role in LayerRole}
    if not by_role[LayerRole.QUANTIZED]:
        raise InputError(f"{model}: got a model without layers to quantize, wanted Linear or Conv2d layers")
    for name, parameter in denoiser.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(f"{model}: got NaN or infinite values in {name}, wanted finite weights")
    return SensitivityTable(
        model=model,
        source_sha256=source_sha256,
        method=settings.method,
        settings={
            **settings.model_dump(mode="json"),
            "samplers": "any" if samplers is None else BASIS if samplers == BASIS else [list(s) for s in samplers],
            "data": data.fingerprint,
            "clip_scorer": clip_scorer,
            "lpips": lpips,
        },
        layers=by_role[LayerRole.QUANTIZED],
        removed=by_role[LayerRole.TIME],
        first_last=by_role[LayerRole.FIRST_LAST] | by_role[LayerRole.CONDITION],
        feature_values=choose_features(denoiser, samplers, pipeline.scheduler.config).values,
        rows=[],
    )


def candidates(table: SensitivityTable) -> list[Candidate]:
    """Every unit of work of a measurement, in the order of the finished table's rows."""
    return [Candidate(name, bits) for name in table.layers for bits in MEASURED_BITS]


def rows_done(out_path: Path, table: SensitivityTable) -> int:
    """How many rows of the measurement `table` (without rows) there are already."""
    if _finished(out_path, table, candidates(table)) is not None:
        return len(candidates(table))
    return len(row_journal(out_path, table.sha256()).read())


def _finished(path: Path, empty: SensitivityTable, wanted: list[Candidate]) -> SensitivityTable | None:
    """The table in `path`, if it is the whole result of the same measurement."""
    if not path.exists():
        return None
    try:
        table = read_table(path)
    except InputError:
        return None
    same = sha256_json(_identity(table)) == sha256_json(_identity(empty))
    return table if same and [(row.layer, row.bits) for row in table.rows] == wanted else None


def _identity(table: SensitivityTable) -> Any:
    return table.model_copy(update={"rows": []}).model_dump(mode="json")
