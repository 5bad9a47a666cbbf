"""The outcome of a run: its rungs, and summary.json for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bitsfusion.artifact.inspect import Inspection
from bitsfusion.evaluation.estimates import verdicts
from bitsfusion.evaluation.rungs import RungScores, geneval, means, paired_difference
from bitsfusion.io.texts import write_json
from bitsfusion.report.data import Rung, SeedScores
from bitsfusion.runs.ladder import FULL_PRECISION, Ladder
from bitsfusion.runs.workspace import stage_folder
from bitsfusion.training.log import LOG_NAME, read_log

SCHEMA_VERSION = 1
LABELS = {
    FULL_PRECISION: ("Full precision", "the original"),
    "init": ("Init", "quantized, not trained"),
    "stage1": ("Stage I", "distilled from the original"),
    "stage2": ("Stage II", "fine-tuned on the true noise"),
    "control": ("Control", "full precision, trained on with Stage II's budget"),
}


def rungs(ladder: Ladder) -> list[Rung]:
    """Every rung, averaged over its training seeds, and compared with full precision.

    Verdicts are corrected for how many there are.
    """
    names = list(dict.fromkeys(model.name for model in ladder.models))
    scores = {name: ladder.scores(name) for name in names}
    compared = {
        name: change
        for name in names[1:]
        if (change := paired_difference(scores[name], scores[FULL_PRECISION])) is not None
    }
    shown = dict(zip(compared, verdicts(list(compared.values())), strict=True))
    average_bits = ladder.workspace.recipe().average_bits
    return [
        Rung(
            name=name,
            label=LABELS[name][0],
            note=LABELS[name][1],
            bits=32.0 if name in (FULL_PRECISION, "control") else average_bits,  # by Appendix H
            geneval=geneval(own, ladder.prompts),
            **means(own),
            seconds=_training_seconds(ladder, name),
            difference=compared.get(name),
            verdict=shown.get(name),
            seeds=[_seed(ladder, score, score.seed) for score in own if score.seed is not None],
        )
        for name, own in scores.items()
    ]


def write_summary(ladder: Ladder, rungs: Sequence[Rung], inspection: Inspection) -> None:
    """Writes summary.json, the one place other programs read."""
    evaluation, prompts = ladder.workspace.config.evaluation, ladder.prompts
    summary = {
        "schema_version": SCHEMA_VERSION,
        "model": ladder.workspace.config.model,
        "source_sha256": ladder.workspace.source_sha256,
        "bits": {
            "average": inspection.average_bits,
            "true": inspection.true_bits,
            "bytes_on_disk": inspection.bytes_on_disk.total,
            "bytes_in_memory": inspection.bytes_in_memory,
            "bytes_fp16": fp16_bytes(ladder),
        },
        "rungs": [_rung_summary(rung, ladder.scores(rung.name), len(prompts.texts)) for rung in rungs],
        "settings": {
            "sampler": evaluation.sampler.value,
            "steps": evaluation.steps,
            "guidance": evaluation.guidance,
            "seeds": [prompts.seeds[0], prompts.seeds[-1]],
            "prompts": len(prompts.texts),
            "prompts_sha256": prompts.sha256,
            "split": evaluation.split if prompts.world else None,
            "training_seeds": list(ladder.workspace.config.seeds),
        },
    }
    write_json(ladder.workspace.path / "summary.json", summary)


def fp16_bytes(ladder: Ladder) -> int:
    """The full-precision UNet at 16 bits a parameter."""
    return 2 * sum(parameter.numel() for parameter in ladder.workspace.denoiser.parameters())


def training_log(ladder: Ladder, name: str) -> list[dict[str, Any]]:
    """The first seed's log lines; none for a rung that was not trained."""
    path = ladder.workspace.path / stage_folder(name, ladder.workspace.config.seeds[0]) / LOG_NAME
    return list(read_log(path)) if path.exists() else []


def _rung_summary(rung: Rung, scores: Sequence[RungScores], prompts: int) -> dict[str, Any]:
    found, change = rung.geneval, rung.difference
    return {
        "name": rung.name,
        "bits": rung.bits,
        "geneval": None if found is None else {**found.scores(), "interval": [found.low, found.high]},
        "against_full_precision": None
        if change is None or rung.verdict is None
        else {**asdict(change), "verdict": rung.verdict.value},
        "clip_score": rung.clip_score,
        "image_mse": rung.image_mse,
        "noise_error": rung.noise_error,
        "noise_loss": rung.noise_loss,
        "images": prompts * len(scores),
        "seconds": round(sum(score.seconds for score in scores), 2),
        "training_seconds": rung.seconds,
        "reload_difference": next((s.reload_difference for s in scores if s.reload_difference is not None), None),
        "per_seed": [asdict(seed) for seed in rung.seeds],
    }


def _seed(ladder: Ladder, score: RungScores, seed: int) -> SeedScores:
    own = geneval([score], ladder.prompts)
    overall = None if own is None else own.overall
    return SeedScores(seed, overall, score.clip_score, score.noise_error, score.noise_loss)


def _training_seconds(ladder: Ladder, name: str) -> float | None:
    """One seed's seconds by the stage's own clock, which continues across interruptions."""
    log = training_log(ladder, name)
    return float(log[-1]["seconds"]) if log else None
