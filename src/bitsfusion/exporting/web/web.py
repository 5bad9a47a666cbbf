"""`--to web`: a folder that is a page, which decodes the packed bits in the browser and draws there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from bitsfusion.artifact.reader import PackedFolder, open_components
from bitsfusion.artifact.schema import CONFIG_FILE
from bitsfusion.artifact.skeleton import empty_model
from bitsfusion.artifact.verify import verify_folder
from bitsfusion.embedded import MODELS, PAPER_GUIDANCE
from bitsfusion.errors import InputError
from bitsfusion.exporting.exported import Exported, Progress, Tally, check_new_folder, written
from bitsfusion.exporting.web.graphs import (
    Decoder,
    Featured,
    Layout,
    MaskedTextEncoder,
    TextEncoder,
    TimedTransformer,
    TimedUNet,
    write_graph,
)
from bitsfusion.exporting.web.schedulers import page_scheduler
from bitsfusion.exporting.web.vendor import write_vendor
from bitsfusion.io.atomic import atomic_folder
from bitsfusion.io.hashes import sha256_file
from bitsfusion.io.texts import read_json
from bitsfusion.pipelines.folder import Component, PipelineFolder
from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.pipelines.resolve import resolve

PAGE = Path(__file__).parent / "page"
"""The page's own files."""
MANIFEST = "page.json"
SCHEMA_VERSION = 2
ENCODER = "CLIPTextModel"
"""The text encoder that the page's tokens are cut and padded for."""
STEPS, SEED, PROMPT = 50, 1024, "a photograph of an astronaut riding a horse"
EMBEDDED_PROMPT = "a red circle and a blue square"
NOTE = "open it through a server (python -m http.server --directory {path}), not as a file"


@dataclass(frozen=True)
class _Kind:
    """A pipeline that the page draws as.

    Fields:
        denoiser: its component.
        text_width: the denoiser's config's name of the text states' width.
        masked: the text encoder is told which tokens are padding.
        schedulers: those that the page has for it.
    """

    denoiser: str
    text_width: str
    masked: bool
    schedulers: tuple[str, ...]

    @property
    def components(self) -> dict[str, str]:
        """A graph's name, and the component that it is of."""
        return {"text_encoder": "text_encoder", "denoiser": self.denoiser, "vae_decoder": "vae"}


_DIFFUSION = ("PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")
KINDS = {
    "StableDiffusionPipeline": _Kind("unet", "cross_attention_dim", False, _DIFFUSION),
    "AuraFlowPipeline": _Kind("transformer", "joint_attention_dim", True, ("FlowMatchEulerDiscreteScheduler",)),
}
"""By class."""


@dataclass(frozen=True)
class _Inputs:
    """What the graphs are traced with. Fields: sizes of latents and text, and whether that has a mask."""

    channels: int
    height: int
    width: int
    length: int
    text_width: int
    masked: bool

    def of(self, graph: str, features: int | None) -> dict[str, Tensor]:
        """Two samples of each input, on meta."""

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(2, *shape, dtype=dtype, device="meta")

        latents = empty(self.channels, self.height, self.width)
        if graph == "text_encoder":
            names = ("input_ids", "attention_mask") if self.masked else ("input_ids",)
            return {name: empty(self.length, dtype=torch.int64) for name in names}
        if graph == "vae_decoder":
            return {"latents": latents}
        time = {"timestep": empty()} if features is None else {"time_features": empty(features)}
        return {"sample": latents, **time, "encoder_hidden_states": empty(self.length, self.text_width)}


def export_web(
    model: str | Path, out: Path, vendor: str | Path | None = None, progress: Progress | None = None
) -> Exported:
    """A folder with a page that draws with the packed model in the browser; any server of files can serve it.

    It holds the packed files as they are, graphs without weights, the page's scripts, and the third-party ones from
    npm. Components that are not packed are stored in float16 where that is exact, else in float32.

    Args:
        model: a packed folder of one of `KINDS` with CLIP's text encoder, or its hub id.
        out: a new folder.
        vendor: a folder with the archives that `npm pack` gives; None to call npm.
        progress: is told of every graph.

    Raises:
        InputError: nothing packed, no onnx libraries or no npm, another kind of pipeline or a scheduler that the page
            does not have, a folder that is there.
        ArtifactError: a broken folder; names the layer.
        BitsFusionError: the disk, npm, or scripts that are not those that were tested.
    """
    check_new_folder(out)
    source = resolve(model)
    if source.class_name not in KINDS:
        got = source.class_name or "folder that is no pipeline"
        raise InputError(f"model: got a {got} ({source.path}), wanted a {' or '.join(KINDS)}")
    kind = KINDS[source.class_name]
    encoder = _component(source, "text_encoder").class_name
    if encoder != ENCODER:
        raise InputError(f"text_encoder: got a {encoder} ({source.path}), wanted a {ENCODER}")
    packed = open_components(source.path)
    described = read_json(_component(source, "scheduler").folder / "scheduler_config.json")
    scheduler = page_scheduler(described, kind.schedulers)
    verify_folder(source.path)
    tally = Tally()
    with atomic_folder(out) as temporary:
        shutil.copytree(PAGE, temporary, dirs_exist_ok=True)
        (temporary / "vendor").mkdir()
        write_vendor(temporary / "vendor", None if vendor is None else Path(vendor))
        _fill(temporary, source, kind, packed, scheduler, tally, progress)
    return written(out, "web", tally, [NOTE.format(path=out)])


def _component(source: PipelineFolder, name: str) -> Component:
    found = source.component(name)
    if found is None:
        raise InputError(f"{source.path}: got a pipeline without a {name}, wanted one with it")
    return found


def _fill(
    out: Path,
    source: PipelineFolder,
    kind: _Kind,
    packed: Mapping[str, PackedFolder],
    scheduler: dict[str, Any],
    tally: Tally,
    progress: Progress | None,
) -> None:
    """The model's files, the graphs, and page.json, which says what is where."""
    parts = kind.components
    configs = {each: read_json(_component(source, each).folder / CONFIG_FILE) for each in parts.values()}
    denoiser = configs[kind.denoiser]
    tokenizer: Any = AutoTokenizer.from_pretrained(source.path / "tokenizer")
    tokenizer.save_pretrained(out / "model" / "tokenizer")
    sample = denoiser["sample_size"]
    height, width = (sample, sample) if isinstance(sample, int) else sample
    length = min(tokenizer.model_max_length, configs["text_encoder"]["max_position_embeddings"])  # may say none: 1e30
    inputs = _Inputs(denoiser["in_channels"], height, width, length, denoiser[kind.text_width], kind.masked)
    dense: Any = None
    (out / "graphs").mkdir()
    graphs: dict[str, Any] = {}
    for done, (graph, component) in enumerate(parts.items(), 1):
        folder = packed.get(component)
        meta, target = empty_model(configs[component]), out / "model" / component
        target.mkdir()
        wrapped, features = _wrapped(graph, kind, meta, folder)
        layers = {} if folder is None else folder.config.layers
        layout = write_graph(wrapped, inputs.of(graph, features), layers, out / "graphs" / f"{graph}.onnx")
        if folder is None:
            dense = dense or load_pipeline(source)
            weights = [_save_dense(getattr(dense, component), layout, target)]
        else:
            shutil.copyfile(folder.path / CONFIG_FILE, target / CONFIG_FILE)
            weights = [Path(shutil.copyfile(file, target / file.name)) for file in folder.weight_files()]
        for _, stored, _, numbers in layout.tensors:
            tally.add("float32" if stored == "scale" else stored, numbers, Layout().add("", stored, numbers)[1])
        graphs[graph] = {
            "component": component,
            "graph": f"graphs/{graph}.onnx",
            "config": None if folder is None else f"model/{component}/{CONFIG_FILE}",
            "weights": [str(path.relative_to(out).as_posix()) for path in weights],
            "bytes": layout.bytes,
            "tensors": layout.tensors,
        }
        if progress is not None:
            progress(done, len(parts))
    vae = configs["vae"]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "defaults": {"steps": STEPS, "seed": SEED, **_defaults(packed)},
        "latents": [inputs.channels, height, width],
        "vae": {"scaling_factor": vae.get("scaling_factor", 0.18215)},
        "tokenizer": {
            "length": length,
            "pad": tokenizer.pad_token_id,
            "end": tokenizer.eos_token_id,
            "masked": kind.masked,
        },
        "scheduler": scheduler,
        "graphs": graphs,
    }
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.parent.name != "vendor")
    loaded = [path for path in files if path.relative_to(out).parts[0] in ("graphs", "model")]
    loaded += sorted((out / "vendor").glob("*.wasm"))
    manifest["files"] = {
        path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in loaded
    }
    (out / MANIFEST).write_text(json.dumps(manifest, allow_nan=False) + "\n", encoding="utf-8")


def _defaults(packed: Mapping[str, PackedFolder]) -> dict[str, Any]:
    """The prompt that the page begins with, and the guidance: an embedded model knows its own world alone."""
    hashes = {folder.config.source_sha256 for folder in packed.values()}
    for name, embedded in MODELS.items():
        if resolve(name).source_sha256 in hashes:
            return {"prompt": EMBEDDED_PROMPT, "guidance": embedded.guidance}
    return {"prompt": PROMPT, "guidance": PAPER_GUIDANCE}


def _wrapped(graph: str, kind: _Kind, meta: nn.Module, folder: PackedFolder | None) -> tuple[nn.Module, int | None]:
    """What is traced, and the width of stored time features if there are any."""
    if graph == "text_encoder":
        return (MaskedTextEncoder if kind.masked else TextEncoder)(meta), None
    if graph == "vae_decoder":
        return Decoder(meta), None
    timed = TimedUNet(meta) if kind.denoiser == "unet" else TimedTransformer(meta)
    if folder is not None and folder.config.stores_features:
        channels = folder.config.time_features.channels
        return Featured(timed, channels), channels
    return timed, None


def _save_dense(model: nn.Module, layout: Layout, target: Path) -> Path:
    """What a graph needs of a component that is not packed, each tensor in float16 where that is exact."""
    tensors = model.state_dict()
    chosen = {name: tensors[name].float() for name, *_ in layout.tensors}
    kept = {
        name: (half if torch.equal((half := tensor.half()).float(), tensor) else tensor).contiguous()
        for name, tensor in chosen.items()
    }
    save_file(kept, target / "weights.safetensors", metadata={"format": "pt"})
    return target / "weights.safetensors"
