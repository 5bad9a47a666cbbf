"""Text encoders and the VAE calibrated, on what they are called with while the original draws."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitsfusion.calibration.calibrate import Calibration, calibrate
from bitsfusion.calibration.layer import CalibratedLayer
from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.calibration.trajectories import Call, draw
from bitsfusion.diffusion.denoise import pipeline_denoiser
from bitsfusion.progress import Progress, silent

_HALVES = {"decoder": ("post_quant_conv", "decoder"), "encoder": ("encoder", "quant_conv")}


def halves(vae: nn.Module) -> dict[str, nn.Sequential]:
    """What decodes and what encodes, each as modules one after another, under the VAE's own names; {} of no VAE."""
    children = dict(vae.named_children())
    if "decoder" not in children:
        return {}
    found = {
        half: OrderedDict((name, children[name]) for name in names if name in children)
        for half, names in _HALVES.items()
    }
    return {half: nn.Sequential(parts) for half, parts in found.items() if half in parts}


@torch.no_grad()
def component_calls(
    pipeline: Any, names: Sequence[str], prompts: Sequence[str], settings: CalibrationSettings
) -> dict[str, dict[str, list[Call]]]:
    """What components are called with while pictures are drawn and decoded.

    Args:
        pipeline: from text to image; as before afterwards.
        names: of components: text encoders, and a VAE.
        prompts: see `trajectories.draw`.
        settings: likewise.

    Returns:
        By component, then by the part of it that is called: "" for all of a text encoder, else see `halves`. A VAE's
        encoder is given the pictures that the original's decoder made.
    """
    found: dict[str, dict[str, list[Call]]] = {name: {} for name in names}
    with ExitStack() as stack:
        for name in names:
            several = halves(pipeline.components[name])
            parts = {"decoder": several["decoder"][0]} if several else {"": pipeline.components[name]}
            for part, first in parts.items():
                kept = found[name].setdefault(part, [])

                def keep(module: nn.Module, args: Any, kwargs: Any, kept: list[Call] = kept) -> None:
                    kept.append(Call(args, kwargs).mapped(lambda tensor: tensor.detach().clone()))

                stack.callback(first.register_forward_pre_hook(keep, with_kwargs=True).remove)
        draw(pipeline, pipeline_denoiser(pipeline), prompts, settings, decoded=True)
    for name in names:
        if "decoder" in found[name]:
            both = halves(pipeline.components[name])
            found[name]["decoder"] = [Call(call.args[:1], {}) for call in found[name]["decoder"]]
            if "encoder" in both:
                pictures = [both["decoder"](*call.args) for call in found[name]["decoder"]]
                found[name]["encoder"] = [Call((picture,), {}) for picture in pictures]
    return found


def calibrate_component(
    model: nn.Module,
    bits: Mapping[str, int],
    calls: Mapping[str, Sequence[Call]],
    settings: CalibrationSettings,
    progress: Progress = silent,
    folder: Path | None = None,
) -> Calibration:
    """`calibrate`, for a text encoder as a whole or a VAE by its halves.

    Args:
        model: in evaluation mode.
        bits: of all its layers; embeddings among them have no inputs to be multiplied with, and are left out.
        calls: of this component, see `component_calls`.
    """
    modules = dict(model.named_modules())
    chosen = {name: b for name, b in bits.items() if isinstance(modules.get(name), (nn.Linear, nn.Conv2d))}
    layers: dict[str, CalibratedLayer] = {}
    notes: list[str] = []
    done = 0
    for part, of_part in calls.items():
        called = halves(model)[part] if part else model
        inside = {name for name, _ in called.named_modules()}
        own = {name: b for name, b in chosen.items() if name in inside}
        if not own or not of_part:
            continue

        def tell(finished: int, total: int, before: int = done) -> None:
            progress(before + finished, len(chosen))

        made = calibrate(called, own, of_part, settings, tell, None if folder is None else folder / (part or "whole"))
        layers.update(made.layers)
        notes += made.notes
        done += len(own)
    if missing := len(chosen) - len(layers):
        notes.append(f"{missing} layers did not run while pictures were drawn: the best scale of their weights alone")
    return Calibration(layers, tuple(notes))
