"""What a run comes to, for other programs: summary.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bitsfusion.artifact.inspect import inspect_folder
from bitsfusion.evaluation.estimates import Difference, Verdict, verdicts
from bitsfusion.evaluation.rungs import RungScores, geneval, paired_difference
from bitsfusion.io.texts import write_json
from bitsfusion.runs.ladder import Ladder
from bitsfusion.runs.workspace import stage_folder
from bitsfusion.training.log import LOG_NAME, read_log

SCHEMA_VERSION = 1


def write_summary(ladder: Ladder) -> None:
    """Writes summary.json, the one place other programs read."""
    inspection = inspect_folder(ladder.workspace.path / "packed")
    evaluation, prompts = ladder.workspace.config.evaluation, ladder.prompts
    compared = comparisons(ladder)
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
        "rungs": [_rung_summary(ladder, name, compared.get(name)) for name in rung_names(ladder)],
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
    return 2 * sum(parameter.numel() for parameter in ladder.workspace.pipeline.unet.parameters())


def rung_names(ladder: Ladder) -> list[str]:
    """Each rung once, in order."""
    return list(dict.fromkeys(model.name for model in ladder.models))


def rung_bits(ladder: Ladder, name: str) -> float:
    """By Appendix H; 32 for a full-precision rung."""
    return 32.0 if name in ("full_precision", "control") else ladder.workspace.recipe().average_bits


def known_mean(values: list[float | None]) -> float | None:
    """The mean of what was measured; None where nothing was."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


@dataclass(frozen=True)
class Comparison:
    """A rung beside full precision: how much more often its images are right, and what that shows."""

    difference: Difference
    verdict: Verdict


def comparisons(ladder: Ladder) -> dict[str, Comparison]:
    """Every rung that was compared with full precision; their verdicts are corrected for how many there are."""
    reference = ladder.scores("full_precision")
    found = {
        name: change
        for name in rung_names(ladder)
        if name != "full_precision" and (change := paired_difference(ladder.scores(name), reference)) is not None
    }
    shown = verdicts(list(found.values()))
    return {name: Comparison(*pair) for name, pair in zip(found, zip(found.values(), shown, strict=True), strict=True)}


def _rung_summary(ladder: Ladder, name: str, compared: Comparison | None) -> dict[str, Any]:
    """One rung, averaged over its training seeds, each of which is under `per_seed`."""
    scores = ladder.scores(name)
    pooled = geneval(scores, ladder.prompts)
    return {
        "name": name,
        "bits": rung_bits(ladder, name),
        "geneval": None if pooled is None else {**pooled.scores(), "interval": [pooled.low, pooled.high]},
        "against_full_precision": None
        if compared is None
        else {**asdict(compared.difference), "verdict": compared.verdict.value},
        "clip_score": known_mean([score.clip_score for score in scores]),
        "image_mse": known_mean([score.image_mse for score in scores]),
        "noise_error": known_mean([score.noise_error for score in scores]),
        "noise_loss": known_mean([score.noise_loss for score in scores]),
        "images": len(ladder.prompts.texts) * len(scores),
        "seconds": round(sum(score.seconds for score in scores), 2),
        "training_seconds": training_seconds(ladder, name),
        "reload_difference": next((s.reload_difference for s in scores if s.reload_difference is not None), None),
        "per_seed": [_seed_summary(ladder, score) for score in scores if score.seed is not None],
    }


def _seed_summary(ladder: Ladder, score: RungScores) -> dict[str, Any]:
    own = geneval([score], ladder.prompts)
    return {
        "seed": score.seed,
        "geneval": None if own is None else own.overall,
        "clip_score": score.clip_score,
        "noise_error": score.noise_error,
        "noise_loss": score.noise_loss,
    }


def training_seconds(ladder: Ladder, name: str) -> float | None:
    """One seed's seconds by the stage's own clock, which continues across interruptions."""
    log = training_log(ladder, name)
    return float(log[-1]["seconds"]) if log else None


def training_log(ladder: Ladder, name: str) -> list[dict[str, Any]]:
    """The first seed's log lines; none for a rung that was not trained."""
    path = ladder.workspace.path / stage_folder(name, ladder.workspace.config.seeds[0]) / LOG_NAME
    return list(read_log(path)) if path.exists() else []
