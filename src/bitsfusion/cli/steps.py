"""`bitsfusion init`, `pack`: the steps alone, on files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from bitsfusion.artifact.inspect import folder_sizes
from bitsfusion.artifact.schema import PackedConfig
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.cli.console import print_json, print_table, progress_bars
from bitsfusion.cli.options import Covered, Device, Json, Model, Quiet, time_cover
from bitsfusion.devices import AUTO
from bitsfusion.embedded import guidance_of
from bitsfusion.errors import InputError
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.load import EMBEDDED
from bitsfusion.runs.calibration import CalibrationJob
from bitsfusion.runs.calibration_plan import CalibrationPlan, pipeline_calibration_plan
from bitsfusion.runs.components import UNET_ALONE, WHOLE, WHOLE_CALIBRATED, OtherBits
from bitsfusion.runs.packing import ScaleDtype, init_pipeline, pack_checkpoint

OtherRecipe = Annotated[
    str | None,
    typer.Option(
        help="Pack this, too: N bits in every layer, an average such as 4.5 spread by the weights' errors, "
        "uniform:N, or a recipe file."
    ),
]
Whole = Annotated[
    bool,
    typer.Option(
        "--whole",
        help=f"Pack text encoders and VAE, too: the same as --text-encoder {WHOLE.text_encoder} --vae {WHOLE.vae}; "
        f"calibrated, as --text-encoder {WHOLE_CALIBRATED.text_encoder} --vae {WHOLE_CALIBRATED.vae}.",
    ),
]
ScaleType = Annotated[
    ScaleDtype, typer.Option(help="float16 rounds scales to float16, so that an export to GGUF is exact.")
]
_CALIBRATION = CalibrationSettings()
TokenEmbedding = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=8,
        help="Bits of a packed text encoder's token embedding.",
        show_default=f"{WHOLE.token_embedding}; with --whole --calibrate {WHOLE_CALIBRATED.token_embedding}",
    ),
]

Config = Annotated[
    str | None,
    typer.Option(
        help="For a single file: a pipeline folder to take configs and tokenizers from. For a component or a "
        "trainer's checkpoint: the pipeline that it belongs to."
    ),
]
Without = Annotated[list[str], typer.Option(help="Component to leave out, such as safety_checker. May be repeated.")]


def init(
    model: Model,
    out: Annotated[Path, typer.Option(help="Packed folder to write.")],
    recipe: Annotated[
        str | None, typer.Option(help="Recipe file, sd15 (published), sdxl, or uniform:N for N bits everywhere.")
    ] = None,
    bits: Annotated[
        float | None, typer.Option(help="Instead of a recipe: average bits per weight, spread by the weights' errors.")
    ] = None,
    scale_init: Annotated[
        ScaleInit,
        typer.Option(help="How scales are found. compact: like exact, with slightly larger scales, for smaller files."),
    ] = ScaleInit.COMPACT,
    cover: Covered = ["basis"],  # noqa: B006
    whole: Whole = False,
    text_encoder: OtherRecipe = None,
    vae: OtherRecipe = None,
    token_embedding: TokenEmbedding = None,
    scale_dtype: ScaleType = "float32",
    config: Config = None,
    without: Without = [],  # noqa: B006
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Fit codes, scales and biases to what the model computes, not to its weights alone. Takes minutes.",
        ),
    ] = False,
    calibration_prompts: Annotated[
        Path | None,
        typer.Option(help="File of prompts to calibrate with: .txt, .jsonl or .tsv.", show_default="the package's own"),
    ] = None,
    calibration_samples: Annotated[
        int | None, typer.Option(min=1, help="Images drawn to calibrate on.", show_default=str(_CALIBRATION.samples))
    ] = None,
    calibration_steps: Annotated[
        int | None, typer.Option(min=1, help="Sampler steps for each.", show_default=str(_CALIBRATION.steps))
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="With --calibrate: print how much memory and time it needs on this machine, and stop."
        ),
    ] = False,
    device: Device = AUTO,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Quantizes and packs a pipeline without training (section 4.1)."""
    job = _calibration(model, calibrate, calibration_prompts, calibration_samples, calibration_steps, device)
    if dry_run:
        if job is None:
            raise InputError("dry-run: got it without --calibrate, wanted both; bitsfusion plan tells of sizes")
        _print_plan(pipeline_calibration_plan(model, job), json)
        return
    with progress_bars(quiet or json) as progress:
        configs = init_pipeline(
            model,
            out,
            recipe=recipe,
            bits=bits,
            method=scale_init,
            samplers=time_cover(cover),
            others=_others(whole, text_encoder, vae, token_embedding, calibrate),
            config=config,
            without=without,
            calibration=job,
            scale_dtype=scale_dtype,
            progress=progress,
        )
    _report(configs, out, json)


def pack(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a finished training stage, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="Packed folder to write.")],
    model: Annotated[str, typer.Option(help="Pipeline that it was trained from.")] = EMBEDDED,
    cover: Covered = ["basis"],  # noqa: B006
    whole: Whole = False,
    text_encoder: OtherRecipe = None,
    vae: OtherRecipe = None,
    token_embedding: TokenEmbedding = None,
    scale_dtype: ScaleType = "float32",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Packs a trained student."""
    others = _others(whole, text_encoder, vae, token_embedding)
    with progress_bars(quiet or json) as progress:
        configs = pack_checkpoint(checkpoint, model, out, time_cover(cover), progress, others, scale_dtype)
    _report(configs, out, json)


def _calibration(
    model: str, calibrate: bool, prompts: Path | None, samples: int | None, steps: int | None, device: str
) -> CalibrationJob | None:
    asked = {"samples": samples, "steps": steps}
    chosen: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if not calibrate:
        if given := [*(["prompts"] if prompts else []), *chosen]:
            raise InputError(f"calibration-{given[0]}: got a value without --calibrate, wanted both or neither")
        return None
    chosen["guidance"] = guidance_of(model)
    return CalibrationJob(prompts, _CALIBRATION.model_copy(update=chosen), device)


def _print_plan(plan: CalibrationPlan, json: bool) -> None:
    if json:
        print_json(plan.to_dict())
        return
    rows = [[part, f"{size / 1e9:.2f}"] for part, size in plan.bytes.items()]
    rows += [
        ["together", f"{sum(plan.bytes.values()) / 1e9:.1f}"],
        ["TFLOP of forward passes", f"{plan.forward_flops / 1e12:.1f}"],
        ["TFLOP of second moments", f"{plan.moment_flops / 1e12:.1f}"],
        ["TFLOP of solving", f"{plan.solving_flops / 1e12:.1f}"],
        ["hours", f"{plan.hours:.2f}"],
    ]
    print(f"Calibration of {plan.layers} layers, the widest of {plan.widest} inputs; GB of 10^9 bytes:")
    print_table(["", "at most"], rows)
    rate = f"{plan.flops_per_second / 1e9:.0f} GFLOP/s"
    print(f"Operations are counted; matrices are multiplied at {rate} on this device, as measured just now.")


def _others(
    whole: bool, text_encoder: str | None, vae: str | None, token_embedding: int | None, calibrate: bool = False
) -> OtherBits:
    base = UNET_ALONE if not whole else WHOLE_CALIBRATED if calibrate else WHOLE
    tokens = base.token_embedding if token_embedding is None else token_embedding
    return OtherBits(text_encoder or base.text_encoder, vae or base.vae, tokens, base.optional)


def _report(configs: Mapping[str, PackedConfig], out: Path, json: bool) -> None:
    """The denoiser's figures, which come first, then every component's size."""
    notes = [note for config in configs.values() for note in config.provenance.get("notes", [])]
    first, sizes = next(iter(configs)), folder_sizes(out)
    unet = configs[first]
    if json:
        result: dict[str, Any] = {"folder": str(out), "layers": len(unet.layers), "average_bits": unet.average_bits}
        components = {
            name: {"bytes": size, "average_bits": configs[name].average_bits if name in configs else None}
            for name, size in sizes.items()
        }
        print_json(result | {"notes": notes, "components": components, "bytes": sum(sizes.values())})
        return
    for note in notes:
        print(f"note: {note}")
    print(f"{out}: {len(unet.layers)} packed layers, {unet.average_bits:.4f} bits on average")
    for name, config in configs.items():
        if name != first:
            print(f"{name}: {len(config.layers)} packed layers, {config.average_bits:.4f} bits on average")
    print(", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.items()) + " MB")
    print(f"the whole pipeline: {sum(sizes.values()) / 1e6:.1f} MB")
