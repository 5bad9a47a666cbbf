"""The outcome of a run for people: the page report/index.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bitsfusion.artifact.inspect import Inspection
from bitsfusion.embedded import embedded_model
from bitsfusion.evaluation.rungs import RungScores, load_images
from bitsfusion.io.hashes import sha256_file
from bitsfusion.io.schema import parse
from bitsfusion.io.texts import read_json
from bitsfusion.report.data import Curve, LayerRow, Pictures, ReportData, Rung, Sizes, layer_rows
from bitsfusion.report.page import write_report
from bitsfusion.report.scores import ScoreTable, read_scores
from bitsfusion.runs.ladder import Ladder
from bitsfusion.runs.summary import LABELS, fp16_bytes, training_log
from bitsfusion.sensitivity.table import read_table
from bitsfusion.vote.results import VoteResults

PICTURED_PER_TASK = 4
VOTES = "votes.json"
SCORES = ("scores.json", "evaluation/scores.json")
"""Shown if they are there: of `bitsfusion vote --results FILE --json` and of `bitsfusion evaluate --out`."""


def write_run_report(ladder: Ladder, rungs: Sequence[Rung], inspection: Inspection) -> Path:
    """Writes report/index.html."""
    model = ladder.workspace.config.model
    known = embedded_model(model)
    return write_report(
        ReportData(
            title=f"{known.title if known else model} at {inspection.average_bits:.2f} bits",
            model=model,
            rungs=rungs,
            final=ladder.packed.name,
            sizes=_sizes(ladder, inspection),
            pictures=_pictures(ladder),
            layers=_layers(ladder, inspection),
            step_errors=_time_step_curves(ladder),
            losses=[
                Curve(LABELS[name][0], [line["step"] for line in log], [line["loss"] for line in log])
                for name in ("stage1", "stage2")
                if (log := training_log(ladder, name))
            ],
            votes=_votes(ladder.workspace.path),
            evaluated=_evaluated(ladder.workspace.path, inspection),
            settings=_settings(ladder),
            command=f"bitsfusion run {ladder.workspace.path}/config.json --out {ladder.workspace.path}",
        ),
        ladder.workspace.path / "report",
    )


def added_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that the page shows and no step of a run makes."""
    return {name: sha256_file(folder / name) for name in (VOTES, *SCORES) if (folder / name).is_file()}


def _votes(folder: Path) -> VoteResults | None:
    path = folder / VOTES
    return parse(VoteResults, read_json(path), str(path)) if path.is_file() else None


def _evaluated(folder: Path, inspection: Inspection) -> ScoreTable | None:
    """Scores of another model than the packed one are refused."""
    return next((read_scores(folder / name, inspection) for name in SCORES if (folder / name).is_file()), None)


def _pictures(ladder: Ladder) -> Pictures:
    """The first prompts of each task, as every rung (the first seed's) drew them."""
    prompts = ladder.prompts
    rows = prompts.first_of_each(PICTURED_PER_TASK)
    images, passed = {}, {}
    for model in ladder.models:
        if model.name not in images:
            images[model.name] = load_images(ladder.folder(model))[rows]
            marks = RungScores.load(ladder.folder(model)).passed
            if marks is not None:
                passed[model.name] = [marks[row] for row in rows]
    return Pictures([prompts.texts[row] for row in rows], images, passed)


def _layers(ladder: Ladder, inspection: Inspection) -> list[LayerRow]:
    """Each packed layer, with its error alone where that bit width was measured."""
    table = read_table(ladder.workspace.path / "sensitivity.json")
    return layer_rows(inspection, {(row.layer, row.bits): row.mse for row in table.rows})


def _sizes(ladder: Ladder, inspection: Inspection) -> Sizes:
    on_disk = inspection.bytes_on_disk
    stored_as_is = on_disk.scales + on_disk.other
    return Sizes(
        fp16_bytes=fp16_bytes(ladder),
        disk_bytes=on_disk.total,
        weights=inspection.weights,
        counted_bytes=round(inspection.average_bits * inspection.weights / 8) + stored_as_is,
        entropy_bytes=round(inspection.entropy_bits * inspection.weights / 8) + stored_as_is,
        memory_bytes=inspection.bytes_in_memory,
        categories=asdict(on_disk),
    )


def _time_step_curves(ladder: Ladder) -> list[Curve]:
    curves = read_json(ladder.workspace.path / "time_steps.json")["latent_error"]
    return [Curve(LABELS[name][0], [t for t, _ in points], [e for _, e in points]) for name, points in curves.items()]


def _settings(ladder: Ladder) -> dict[str, object]:
    config = ladder.workspace.config
    return {
        "Sampler": f"{config.evaluation.sampler.value.upper()}, {config.evaluation.steps} steps",
        "Guidance": config.evaluation.guidance,
        "Prompts": f"{len(ladder.prompts.texts)}, the same and with the same seeds for every rung",
        "Prompts SHA-256": ladder.prompts.sha256[:16],
        "Analysis": config.analysis.method,
        "Assignment": f"{config.recipe.strategy.value}, at most {config.recipe.target_bits} bits",
        "Scale init": str(getattr(config.scale_init, "value", config.scale_init)),
        "Stage I": f"{config.stage1.max_train_steps} steps of {config.stage1.train_batch_size}",
        "Stage II": f"{config.stage2.max_train_steps} steps of {config.stage2.train_batch_size}",
        "Training seeds": ", ".join(map(str, config.seeds)),
    }
