"""What a plan of memory and time needs of a pipeline on disk: its small JSON files, no weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsfusion.architectures.registry import denoiser_called
from bitsfusion.architectures.unet import UNET
from bitsfusion.architectures.vae import Autoencoder
from bitsfusion.errors import InputError
from bitsfusion.io.texts import read_json
from bitsfusion.pipelines.folder import Form, PipelineFolder
from bitsfusion.pipelines.load import whole_pipeline
from bitsfusion.pipelines.resolve import resolve_configs

_UNLIMITED = 1 << 20  # what tokenizers without a limit say is larger


@dataclass(frozen=True)
class PlannedDenoiser:
    """A denoiser's shapes and those of what it is given.

    Fields:
        config: its config.json.
        tokens: of a prompt, as the denoiser is given them.
        pixels: on a side of a latent.
    """

    config: Mapping[str, Any]
    tokens: int
    pixels: int

    @property
    def latent_size(self) -> int:
        """Height and width of the latents that the model was made for."""
        return denoiser_called(self.config).latent_size(self.config)


def planned_denoiser(model: str) -> PlannedDenoiser:
    """The denoiser of a pipeline; of a hub id, nothing but JSON files are fetched.

    Raises:
        InputError: no such model, no whole pipeline, or no denoiser that is known.
    """
    found = resolve_configs(model)
    pipeline = found if found.form is Form.PIPELINE else whole_pipeline(found)
    denoiser = pipeline.denoiser
    config = _config(denoiser.folder)
    family = denoiser_called(config)
    tokens = _clip_tokens(pipeline) if family is UNET else family.prompt_tokens(_sequence_length(pipeline))
    return PlannedDenoiser(config, tokens, _pixels(pipeline))


def _config(folder: Path) -> dict[str, Any]:
    config: Any = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'}: got a {type(config).__name__}, wanted a model's config")
    return {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}


def _clip_tokens(pipeline: PipelineFolder) -> int:
    for name in ("text_encoder", "text_encoder_2"):
        encoder = pipeline.component(name)
        if encoder is not None:
            return int(read_json(encoder.folder / "config.json")["max_position_embeddings"])
    raise InputError(f"{pipeline.path}: got no text encoder, wanted a pipeline that draws from prompts")


def _sequence_length(pipeline: PipelineFolder) -> int:
    """The pipeline's own number, or fewer where its last tokenizer takes no more."""
    import diffusers

    made: Any = getattr(diffusers, pipeline.class_name or "", None)
    own = made and inspect.signature(made.__call__).parameters.get("max_sequence_length")
    if own is None:
        raise InputError(f"{pipeline.path}: got a {pipeline.class_name}, wanted a pipeline that draws from a prompt")
    limits = [_UNLIMITED]
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        tokenizer = pipeline.component(name)
        if tokenizer is not None and (tokenizer.folder / "tokenizer_config.json").is_file():
            limits.append(
                int(read_json(tokenizer.folder / "tokenizer_config.json").get("model_max_length", _UNLIMITED))
            )
    return min(int(own.default), limits[-1])


def _pixels(pipeline: PipelineFolder) -> int:
    vae = pipeline.component("vae")
    if vae is None:
        raise InputError(f"{pipeline.path}: got no vae, wanted a pipeline of latents")
    if not isinstance(vae.architecture, Autoencoder):
        raise InputError(f"{vae.folder}: got a {vae.class_name}, whose size of latents is not known")
    return vae.architecture.latents.stride(read_json(vae.folder / "config.json"))
