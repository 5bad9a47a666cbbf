"""What a user names -> a folder on this machine: every command's one way from a model's name to its files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

from bitsfusion.embedded import MODELS
from bitsfusion.errors import InputError
from bitsfusion.pipelines.folder import INDEX, Form, PipelineFolder, read_folder

EMBEDDED = "embedded"
"""The name of the quick world's model, the one that commands take where none is named."""

SHIPPED: Mapping[str, Path] = {name: model.pipeline for name, model in MODELS.items()}
"""Models that come with the package, by name."""

HASHES_FILE = "SHA256SUMS"
"""The hashes of a packed pipeline's files; no file that diffusers fetches from the hub by itself."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl", ".pickle")
_LONG_JSON = ["*tokenizer.json", "*vocab.json", "*added_tokens.json"]
_VARIANTS = (None, "fp16", "bf16")


def resolve(model: str | Path, config: str | None = None) -> PipelineFolder:
    """The local folder of a model.

    Args:
        model: a name in `SHIPPED`; the folder of a pipeline, of one component or of a trainer's checkpoint; a
            single-file checkpoint (.safetensors) in the layout of the original LDM or SDXL code; or a hub id, which is
            fetched if need be.
        config: of a single file: the pipeline whose configs and tokenizers it takes (any of the above but a file);
            of a component or checkpoint: the pipeline that it belongs to.

    Raises:
        InputError: nothing of these, or the hub has no such model.
    """
    name = str(model)
    if name in SHIPPED:
        return _joined(read_folder(SHIPPED[name]), config)
    path = Path(model)
    if path.is_dir():
        return _joined(read_folder(path), config)
    if path.suffix.lower() in _PICKLES and (path.is_file() or not _is_hub_id(name)):
        raise InputError(
            f"{name}: got a file that may be a pickle, wanted safetensors: load it where you trust it and save it with "
            "save_pretrained(FOLDER, safe_serialization=True), or convert the file to .safetensors"
        )
    if path.is_file():
        from bitsfusion.pipelines.single_file import converted

        return converted(path, None if config is None else resolve(config))
    if not _is_hub_id(name):
        raise InputError(
            f"{name}: no such folder, wanted a pipeline, component or checkpoint folder, a .safetensors file, a hub id "
            f"or {' or '.join(repr(shipped) for shipped in SHIPPED)}"
        )
    return _joined(_fetched(name), config)


def resolve_configs(model: str) -> PipelineFolder:
    """The folder of a model, of which nothing but JSON files need be there: of a hub id, no others are fetched.

    Args:
        model: as `resolve` takes it, but no single file.

    Raises:
        InputError: as `resolve`.
    """
    if model in SHIPPED or Path(model).exists() or not _is_hub_id(model):
        return resolve(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = snapshot_download(model, allow_patterns=["*.json"], ignore_patterns=_LONG_JSON)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise _not_given(model, str(error)) from None
    return read_folder(Path(folder))


def _not_given(model: str, reason: str) -> InputError:
    return InputError(f"{model}: no such folder, and the hub did not give it: {' '.join(reason.split())[:300]}")


def _joined(found: PipelineFolder, config: str | None) -> PipelineFolder:
    """A component in the pipeline that it belongs to, where one is named."""
    if config is None:
        return found
    if found.form is Form.PIPELINE:
        raise InputError(f"config: got {config!r} for {found.path}, wanted none: it is a whole pipeline")
    return resolve(config).with_component(found.components[0])


def _is_hub_id(name: str) -> bool:
    return not Path(name).is_absolute() and not name.startswith(".") and _HUB_ID.fullmatch(name) is not None


def _fetched(model: str) -> PipelineFolder:
    """The files of a hub id that loading needs, from the cache or the hub."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    reason = ""
    for variant in _VARIANTS:
        try:
            folder = Path(DiffusionPipeline.download(model, variant=variant))
        except (OSError, ValueError, HfHubHTTPError) as error:
            reason = reason or str(error)
            continue
        if (folder / INDEX).is_file():
            with contextlib.suppress(EntryNotFoundError, OSError, HfHubHTTPError):  # dense, or packed without hashes
                hf_hub_download(model, HASHES_FILE)
            return read_folder(folder)
    try:  # a model alone
        return read_folder(Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors"])))
    except (OSError, ValueError, HfHubHTTPError):
        raise _not_given(model, reason) from None
