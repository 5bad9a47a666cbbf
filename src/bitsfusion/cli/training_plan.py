"""What training will cost, as `--dry-run` of `run` and `train` prints it."""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import Enum
from typing import Annotated, Any

import typer

from bitsfusion.cli.console import print_json, print_table
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.stage import StageConfig, plan_analysis, plan_training
from bitsfusion.training.plan import Machine, Plan


class Gpu(str, Enum):
    """What a plan is made for: see `MACHINES`."""

    A100 = "a100"
    RTX4090 = "rtx4090"


PlannedGpu = Annotated[Gpu, typer.Option(help="GPU that --dry-run plans for.")]
PlannedGpus = Annotated[
    int | None, typer.Option(min=1, help="How many GPUs --dry-run plans for.", show_default="8 a100, 1 rtx4090")
]


def print_planned(config: StageConfig | RunConfig, machine: Machine, gpus: int | None, json: bool) -> None:
    """The resolved config, memory and days of each stage on `gpus` of `machine`, and days of a run's analysis."""
    machine = replace(machine, gpus=gpus or machine.gpus)
    plans = plan_training(config, machine)
    analysis = plan_analysis(config, machine) if isinstance(config, RunConfig) else None
    if json:
        printed: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "plan": {name: plan.to_dict() for name, plan in plans.items()},
        }
        print_json(printed | ({"analysis": asdict(analysis)} if analysis else {}))
        return
    print_json(config.model_dump(mode="json"))
    _print_plans(plans)
    if analysis:
        print(
            f"Analysis ({analysis.method}): {analysis.candidates} candidates, {analysis.passes:,} latents through the "
            f"model in float32, {analysis.days:.2f} days ({24 * analysis.days:.1f} hours) of one {machine.name}"
        )


def _print_plans(plans: dict[str, Plan]) -> None:
    first = next(iter(plans.values()))
    machine = first.machine
    rows = [
        [name, *(f"{plan.bytes[name] / 1e9:.2f}" for plan in plans.values())]
        for name in first.bytes
        if any(plan.bytes[name] for plan in plans.values())
    ]
    rows += [
        ["together", *(f"{plan.bytes_per_gpu / 1e9:.1f}" for plan in plans.values())],
        ["fits", *("yes" if plan.fits else f"no, {machine.memory_bytes / 1e9:.0f} GB" for plan in plans.values())],
        ["samples a step", *(str(plan.samples_per_step) for plan in plans.values())],
        ["steps", *(str(plan.steps) for plan in plans.values())],
        ["TFLOP a sample", *(f"{plan.flops_per_sample / 1e12:.2f}" for plan in plans.values())],
        ["days", *(f"{plan.days:.2f}" for plan in plans.values())],
        ["hours", *(f"{24 * plan.days:.1f}" for plan in plans.values())],
    ]
    held = ", weights in parts over them (FSDP2)" if first.sharded else ", everything held on each (DDP)"
    print(f"Plan for {machine.gpus} x {machine.name}{held if machine.gpus > 1 else ''}; GB of 10^9 bytes a GPU:")
    print_table(["", *plans], rows)
    print(f"Operations and activations are counted; {machine.utilisation:.0%} of the peak rate is assumed. Left out:")
    print("text encoder, data, communication, buckets and workspaces of the libraries, validation images.")
