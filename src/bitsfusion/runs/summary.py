"""What a run comes to: summary.json for other programs and the page for people."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitsfusion.artifact.inspect import Inspection, inspect_folder
from bitsfusion.evaluation.report import write_report
from bitsfusion.evaluation.report_data import Curve, LayerRow, Pictures, ReportData, Rung, Sizes
from bitsfusion.evaluation.rungs import RungScores, geneval, load_images, paired_difference
from bitsfusion.files import read_json, write_json
from bitsfusion.sensitivity.table import read_table
from bitsfusion.training.log import LOG_NAME, read_log

if TYPE_CHECKING:
    from bitsfusion.runs.run import Run

SCHEMA_VERSION = 1
PICTURED_PER_TASK = 4
LABELS = {
    "full_precision": ("Full precision", "the original"),
    "init": ("Init", "quantized, not trained"),
    "stage1": ("Stage I", "distilled from the original"),
    "stage2": ("Stage II", "fine-tuned on the true noise"),
    "control": ("Control", "full precision, trained on with Stage II's budget"),
}


def write_summary(run: Run) -> None:
    """Writes summary.json, the one place other programs read."""
    inspection = inspect_folder(run.path / "packed")
    evaluation, prompts = run.config.evaluation, run.ladder.prompts
    summary = {
        "schema_version": SCHEMA_VERSION,
        "model": run.config.model,
        "source_sha256": run.source_sha256,
        "bits": {
            "average": inspection.average_bits,
            "true": inspection.true_bits,
            "bytes_on_disk": inspection.bytes_on_disk.total,
            "bytes_in_memory": inspection.bytes_in_memory,
            "bytes_fp16": fp16_bytes(run),
        },
        "rungs": [_rung_summary(run, name) for name in _rung_names(run)],
        "settings": {
            "sampler": evaluation.sampler.value,
            "steps": evaluation.steps,
            "guidance": evaluation.guidance,
            "seeds": [prompts.seeds[0], prompts.seeds[-1]],
            "prompts": len(prompts.texts),
            "prompts_sha256": prompts.sha256,
            "split": evaluation.split if prompts.world else None,
            "training_seeds": list(run.config.seeds),
        },
    }
    write_json(run.path / "summary.json", summary)


def fp16_bytes(run: Run) -> int:
    """The full-precision UNet at 16 bits a parameter."""
    return 2 * sum(parameter.numel() for parameter in run.pipeline.unet.parameters())


def _rung_names(run: Run) -> list[str]:
    return list(dict.fromkeys(model.name for model in run.ladder.models))


def _bits(run: Run, name: str) -> float:
    return 32.0 if name in ("full_precision", "control") else run.recipe().average_bits


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _rung_summary(run: Run, name: str) -> dict[str, Any]:
    """One rung, averaged over its training seeds, each of which is under `per_seed`."""
    scores, reference = run.ladder.scores(name), run.ladder.scores("full_precision")
    pooled = geneval(scores, run.ladder.prompts)
    return {
        "name": name,
        "bits": _bits(run, name),
        "geneval": None if pooled is None else {**pooled.scores(), "interval": [pooled.low, pooled.high]},
        "against_full_precision": None if name == "full_precision" else paired_difference(scores, reference),
        "clip_score": _mean([score.clip_score for score in scores]),
        "image_mse": _mean([score.image_mse for score in scores]),
        "noise_error": _mean([score.noise_error for score in scores]),
        "noise_loss": _mean([score.noise_loss for score in scores]),
        "images": len(run.ladder.prompts.texts) * len(scores),
        "seconds": round(sum(score.seconds for score in scores), 2),
        "training_seconds": _training_seconds(run, name),
        "reload_difference": next((s.reload_difference for s in scores if s.reload_difference is not None), None),
        "per_seed": [_seed_summary(run, score) for score in scores if score.seed is not None],
    }


def _seed_summary(run: Run, score: RungScores) -> dict[str, Any]:
    own = geneval([score], run.ladder.prompts)
    return {
        "seed": score.seed,
        "geneval": None if own is None else own.overall,
        "clip_score": score.clip_score,
        "noise_error": score.noise_error,
        "noise_loss": score.noise_loss,
    }


def _training_seconds(run: Run, name: str) -> float | None:
    """Of one seed, by the stage's own clock, which goes on across interruptions."""
    log = _log(run, name)
    return float(log[-1]["seconds"]) if log else None


def _log(run: Run, name: str) -> list[dict[str, Any]]:
    path = run.path / name / f"seed-{run.config.seeds[0]}" / LOG_NAME
    return list(read_log(path)) if path.exists() else []


def write_run_report(run: Run) -> Path:
    """Writes report/index.html."""
    inspection = inspect_folder(run.path / "packed")
    return write_report(
        ReportData(
            title="Full precision beside every step down to two bits",
            model=run.config.model,
            rungs=[_rung(run, name) for name in _rung_names(run)],
            final="stage2",
            sizes=_sizes(run, inspection),
            pictures=_pictures(run),
            layers=_layers(run, inspection),
            step_errors=_time_step_curves(run),
            losses=[
                Curve(LABELS[name][0], [line["step"] for line in log], [line["loss"] for line in log])
                for name in ("stage1", "stage2")
                if (log := _log(run, name))
            ],
            settings=_settings(run),
            command=f"bitsfusion run config.json --out {run.path.name}",
        ),
        run.path / "report",
    )


def _rung(run: Run, name: str) -> Rung:
    scores = run.ladder.scores(name)
    label, note = LABELS[name]
    return Rung(
        name=name,
        label=label,
        note=note,
        bits=_bits(run, name),
        geneval=geneval(scores, run.ladder.prompts),
        clip_score=_mean([score.clip_score for score in scores]),
        image_mse=_mean([score.image_mse for score in scores]),
        noise_error=_mean([score.noise_error for score in scores]),
        noise_loss=_mean([score.noise_loss for score in scores]),
        seconds=_training_seconds(run, name),
    )


def _pictures(run: Run) -> Pictures:
    """The first prompts of each task, as every rung (the first seed's) drew them."""
    prompts = run.ladder.prompts
    few = prompts.head(PICTURED_PER_TASK)
    rows = [prompts.seeds.index(seed) for seed in few.seeds]
    images, passed = {}, {}
    for model in run.ladder.models:
        if model.name not in images:
            images[model.name] = load_images(run.ladder.folder(model))[rows]
            marks = RungScores.load(run.ladder.folder(model)).passed
            if marks is not None:
                passed[model.name] = [marks[row] for row in rows]
    return Pictures(few.texts, images, passed)


def _layers(run: Run, inspection: Inspection) -> list[LayerRow]:
    """Each packed layer with its error alone at the nearest measured bit width."""
    table = read_table(run.path / "sensitivity.json")
    errors = {(row.layer, row.bits): row.mse for row in table.rows}
    return [
        LayerRow(
            name=layer.name,
            kind=_kind(layer.shape),
            weights=layer.weights,
            bits=layer.bits,
            error=errors.get((layer.name, layer.bits)),
            entropy=layer.entropy,
        )
        for layer in inspection.layers
    ]


def _kind(shape: tuple[int, ...]) -> str:
    return f"conv {shape[2]}x{shape[3]}" if len(shape) == 4 else "linear"


def _sizes(run: Run, inspection: Inspection) -> Sizes:
    on_disk = inspection.bytes_on_disk
    stored_as_is = on_disk.scales + on_disk.other
    return Sizes(
        fp16_bytes=fp16_bytes(run),
        disk_bytes=on_disk.total,
        weights=inspection.weights,
        counted_bytes=round(inspection.average_bits * inspection.weights / 8) + stored_as_is,
        entropy_bytes=round(inspection.entropy_bits * inspection.weights / 8) + stored_as_is,
        memory_bytes=inspection.bytes_in_memory,
        categories=asdict(on_disk),
    )


def _time_step_curves(run: Run) -> list[Curve]:
    curves = read_json(run.path / "time_steps.json")["latent_error"]
    return [Curve(LABELS[name][0], [t for t, _ in points], [e for _, e in points]) for name, points in curves.items()]


def _settings(run: Run) -> dict[str, object]:
    config = run.config
    return {
        "Sampler": f"{config.evaluation.sampler.value.upper()}, {config.evaluation.steps} steps",
        "Guidance": config.evaluation.guidance,
        "Prompts": f"{len(run.ladder.prompts.texts)}, the same and with the same seeds for every rung",
        "Prompts SHA-256": run.ladder.prompts.sha256[:16],
        "Analysis": config.analysis.method,
        "Assignment": f"{config.recipe.strategy.value}, at most {config.recipe.target_bits} bits",
        "Scale init": config.scale_init.value,
        "Stage I": f"{config.stage1.max_train_steps} steps of {config.stage1.train_batch_size}",
        "Stage II": f"{config.stage2.max_train_steps} steps of {config.stage2.train_batch_size}",
        "Training seeds": ", ".join(map(str, config.seeds)),
    }
