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
from bitsfusion.exporting.web.graphs import Decoder, FeaturedUNet, Layout, TextEncoder, TimedUNet, write_graph
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
SCHEMA_VERSION = 1
GRAPHS = {"text_encoder": "text_encoder", "unet": "unet", "vae_decoder": "vae"}
"""A graph's name, and the component that it is of."""
SCHEDULERS = ("PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler")
"""Those that the page has, of pipelines that predict noise."""
STEPS, SEED, PROMPT = 50, 1024, "a photograph of an astronaut riding a horse"
EMBEDDED_PROMPT = "a red circle and a blue square"
NOTE = "open it through a server (python -m http.server --directory {path}), not as a file"


@dataclass(frozen=True)
class _Inputs:
    """What the graphs are traced with. Fields: sizes of latents and text."""

    channels: int
    height: int
    width: int
    length: int
    text_width: int

    def of(self, graph: str, features: int | None) -> dict[str, Tensor]:
        """Two samples of each input, on meta."""

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(2, *shape, dtype=dtype, device="meta")

        latents = empty(self.channels, self.height, self.width)
        if graph == "text_encoder":
            return {"input_ids": empty(self.length, dtype=torch.int64)}
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
        model: a packed Stable Diffusion pipeline's folder, or its hub id.
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
    if source.class_name != "StableDiffusionPipeline":
        raise InputError(f"model: got a {source.class_name} ({source.path}), wanted a StableDiffusionPipeline")
    packed = open_components(source.path)
    scheduler = read_json(_component(source, "scheduler").folder / "scheduler_config.json")
    if scheduler.get("_class_name") not in SCHEDULERS:
        raise InputError(f"scheduler: got {scheduler.get('_class_name')}, wanted {', '.join(SCHEDULERS)}")
    verify_folder(source.path)
    tally = Tally()
    with atomic_folder(out) as temporary:
        shutil.copytree(PAGE, temporary, dirs_exist_ok=True)
        (temporary / "vendor").mkdir()
        write_vendor(temporary / "vendor", None if vendor is None else Path(vendor))
        _fill(temporary, source, packed, scheduler, tally, progress)
    return written(out, "web", tally, [NOTE.format(path=out)])


def _component(source: PipelineFolder, name: str) -> Component:
    found = source.component(name)
    if found is None:
        raise InputError(f"{source.path}: got a pipeline without a {name}, wanted one with it")
    return found


def _fill(
    out: Path,
    source: PipelineFolder,
    packed: Mapping[str, PackedFolder],
    scheduler: dict[str, Any],
    tally: Tally,
    progress: Progress | None,
) -> None:
    """The model's files, the graphs, and page.json, which says what is where."""
    configs = {each: read_json(_component(source, each).folder / CONFIG_FILE) for each in GRAPHS.values()}
    tokenizer: Any = AutoTokenizer.from_pretrained(source.path / "tokenizer")
    tokenizer.save_pretrained(out / "model" / "tokenizer")
    sample = configs["unet"]["sample_size"]
    height, width = (sample, sample) if isinstance(sample, int) else sample
    length, text_width = tokenizer.model_max_length, configs["unet"]["cross_attention_dim"]
    inputs = _Inputs(configs["unet"]["in_channels"], height, width, length, text_width)
    dense: Any = None
    (out / "graphs").mkdir()
    graphs: dict[str, Any] = {}
    for done, (graph, component) in enumerate(GRAPHS.items(), 1):
        folder = packed.get(component)
        meta, target = empty_model(configs[component]), out / "model" / component
        target.mkdir()
        wrapped, features = _wrapped(graph, meta, folder)
        layers = {} if folder is None else folder.config.layers
        layout = write_graph(wrapped, inputs.of(graph, features), layers, out / "graphs" / f"{graph}.onnx")
        if folder is None:
            dense = dense or load_pipeline(source)
            weights = [_save_dense(getattr(dense, component), layout, target)]
        else:
            shutil.copyfile(folder.path / CONFIG_FILE, target / CONFIG_FILE)
            weights = [Path(shutil.copyfile(file, target / file.name)) for file in folder.weight_files()]
        for _, kind, _, numbers in layout.tensors:
            tally.add("float32" if kind == "scale" else kind, numbers, Layout().add("", kind, numbers)[1])
        graphs[graph] = {
            "graph": f"graphs/{graph}.onnx",
            "config": None if folder is None else f"model/{component}/{CONFIG_FILE}",
            "weights": [str(path.relative_to(out).as_posix()) for path in weights],
            "bytes": layout.bytes,
            "tensors": layout.tensors,
        }
        if progress is not None:
            progress(done, len(GRAPHS))
    vae = configs["vae"]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "defaults": {"steps": STEPS, "seed": SEED, **_defaults(packed)},
        "latents": [inputs.channels, height, width],
        "vae": {"scaling_factor": vae.get("scaling_factor", 0.18215), "shift_factor": vae.get("shift_factor") or 0.0},
        "tokenizer": {"length": length, "pad": tokenizer.pad_token_id, "end": tokenizer.eos_token_id},
        "scheduler": {key: value for key, value in scheduler.items() if key != "_diffusers_version"},
        "graphs": graphs,
    }
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.parent.name != "vendor")
    loaded = [path for path in files if path.relative_to(out).parts[0] in ("graphs", "model")]
    loaded += sorted((out / "vendor").glob("*.wasm"))
    manifest["files"] = {
        path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in loaded
    }
    (out / MANIFEST).write_text(json.dumps(manifest) + "\n", encoding="utf-8")


def _defaults(packed: Mapping[str, PackedFolder]) -> dict[str, Any]:
    """The prompt that the page begins with, and the guidance: an embedded model knows its own world alone."""
    hashes = {folder.config.source_sha256 for folder in packed.values()}
    for name, embedded in MODELS.items():
        if resolve(name).source_sha256 in hashes:
            return {"prompt": EMBEDDED_PROMPT, "guidance": embedded.guidance}
    return {"prompt": PROMPT, "guidance": PAPER_GUIDANCE}


def _wrapped(graph: str, meta: nn.Module, folder: PackedFolder | None) -> tuple[nn.Module, int | None]:
    """What is traced, and the width of stored time features if there are any."""
    if graph == "text_encoder":
        return TextEncoder(meta), None
    if graph == "vae_decoder":
        return Decoder(meta), None
    if folder is not None and folder.config.stores_features:
        channels = folder.config.time_features.channels
        return FeaturedUNet(meta, channels), channels
    return TimedUNet(meta), None


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
