"""The scores that a card shows, from a run's summary.json or the scores.json of `bitsfusion evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from bitsfusion.artifact.inspect import Inspection
from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_json


@dataclass(frozen=True)
class ScoreTable:
    """A table of scores as text, what was done to get them, and the original if the file names it.

    Fields:
        results: what the packed model scored, in the form of the hub.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    settings: Mapping[str, str]
    original: str | None
    results: tuple[EvalResult, ...] = ()


_RUNGS = {
    "full_precision": "full precision",
    "init": "quantized, not trained",
    "stage1": "after Stage I",
    "stage2": "after Stage II",
    "control": "full precision, trained on with Stage II's budget",
}


def read_scores(path: Path, inspection: Inspection) -> ScoreTable:
    """The table of either file, checked to be of the model that was inspected: by its bits, by the recipe and on
    disk, which two trainings of one recipe do not share.

    Raises:
        InputError: no such file, another kind of file, or the scores of another model.
    """
    values = read_json(path)
    wanted = f"{path}: wanted a summary.json or scores.json of bitsfusion"
    try:
        if "rungs" not in values and values["model"].get("pictures"):
            source = values["model"]["source"]
            raise InputError(
                f"{path}: is of the pictures in {source}, wanted scores of images that {inspection.path} has drawn"
            )
        table = _summary(values) if "rungs" in values else _evaluation(values)
        bits = values["bits"] if "rungs" in values else values["model"]["bits"]
        average, true = float(bits["average"]), float(bits.get("true", inspection.true_bits))
    except KeyError as error:
        raise InputError(f"{wanted}, got none with {error}") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{wanted}, got another form ({error})") from None
    if abs(average - inspection.average_bits) > 1e-9 or abs(true - inspection.true_bits) > 1e-9:
        raise InputError(
            f"{path}: is of a model at {average:.6f} bits, {true:.6f} on disk, wanted one of "
            f"{inspection.path} at {inspection.average_bits:.6f}, {inspection.true_bits:.6f} on disk"
        )
    return table


def _summary(values: Mapping[str, Any]) -> ScoreTable:
    """A row a rung; a column that no rung has is left out."""
    rungs = values["rungs"]
    columns = {
        "bits": lambda rung: f"{rung['bits']:.4g}",
        "GenEval (95 %)": lambda rung: _with_interval(rung.get("geneval")),
        "CLIP score": lambda rung: _number(rung.get("clip_score")),
        "image MSE": lambda rung: _number(rung.get("image_mse")),
        "noise loss": lambda rung: _number(rung.get("noise_loss")),
    }
    cells = {name: [cell(rung) for rung in rungs] for name, cell in columns.items()}
    shown = {name: column for name, column in cells.items() if any(cell != "–" for cell in column)}
    names = [_RUNGS.get(rung["name"], rung["name"]) for rung in rungs]
    settings = values["settings"]
    first, last = settings["seeds"]
    notes = {
        "sampler": f"{settings['sampler']}, {settings['steps']} steps, guidance {settings['guidance']:g}",
        "images": f"{settings['prompts']} prompts (SHA-256 {settings['prompts_sha256'][:16]}), seeds {first} to {last}",
        "training seeds": ", ".join(str(seed) for seed in settings["training_seeds"])
        + "; trained rows are their mean, this model is the first",
    }
    packed: Mapping[str, Any] = next((rung for rung in rungs if rung["name"] == "stage2"), {})
    scored = {
        "geneval": (packed.get("geneval") or {}).get("overall"),
        "clip": packed.get("clip_score"),
        "image mse": packed.get("image_mse"),
    }
    found = [
        _result(name, value, settings, settings["guidance"]) for name, value in scored.items() if value is not None
    ]
    rows = tuple(zip(names, *shown.values(), strict=True))
    return ScoreTable(("model", *shown), rows, notes, values.get("model"), tuple(found))


def _evaluation(values: Mapping[str, Any]) -> ScoreTable:
    """A row a metric and guidance: both models, the difference, and what may be said of it."""
    rows = []
    for result in values["results"]:
        between = result.get("difference") or result.get("to_original")
        rows.append(
            (
                result["metric"],
                f"{result['guidance']:g}",
                _number(_value(result.get("model"))),
                _number(_value(result.get("against"))),
                "–" if between is None else f"{between['mean']:.4g} ({between['low']:.4g} to {between['high']:.4g})",
                (result.get("difference") or {}).get("verdict", ""),
            )
        )
    settings = values["settings"]
    seeds = settings["seeds"]
    shown = f"{len(seeds)} seeds"
    if not isinstance(seeds, list):
        shown = f"seeds {seeds['first']} to {seeds['first'] + seeds['count'] - 1}"
    notes = {
        "sampler": f"{settings['sampler']}, {settings['steps']} steps",
        "images": f"{settings['images']}, prompts: {Path(settings['prompts']).name} "
        f"(SHA-256 {settings['prompts_sha256'][:16]}), {shown}",
    }
    notes |= {metric: depends for metric, on in values.get("metrics", {}).items() if (depends := _depends(on))}
    columns = ("metric", "guidance", "this model", "original", "between them (95 %)", "")
    against = values.get("against") or {}
    found = [
        _result(result["metric"], value, settings, result["guidance"])
        for result in values["results"]
        if (value := _value(result.get("model") or result.get("to_original"))) is not None
    ]
    original = None if against.get("pictures") else against.get("source")
    return ScoreTable(columns, tuple(rows), notes, original, tuple(found))


def _result(metric: str, value: float, settings: Mapping[str, Any], guidance: float) -> EvalResult:
    """A score as the hub lists it: of which prompts, drawn how."""
    prompts = settings["prompts"]
    name = f"{prompts} prompts" if isinstance(prompts, int) else Path(prompts).name
    return EvalResult(
        task_type="text-to-image",
        dataset_type="custom",
        dataset_name=name,
        dataset_args={"prompts_sha256": settings["prompts_sha256"]},
        metric_type=metric,
        metric_value=value,
        metric_args={"sampler": settings["sampler"], "steps": settings["steps"], "guidance": guidance},
    )


def _depends(on: Mapping[str, Any]) -> str:
    """What a metric's number depends on, but for hashes and the folders of the one who measured."""
    shown = {key: value for key, value in on.items() if isinstance(value, (str, int, float)) and "sha256" not in key}
    return ", ".join(f"{key} {Path(str(value)).name if key == 'reference' else value}" for key, value in shown.items())


def _value(side: Mapping[str, Any] | None) -> float | None:
    return None if side is None else side.get("mean", side.get("value"))


def _with_interval(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "–"
    low, high = score["interval"]
    return f"{score['overall']:.3f} ({low:.3f} to {high:.3f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
