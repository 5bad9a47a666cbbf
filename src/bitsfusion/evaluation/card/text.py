"""The text of a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from bitsfusion.artifact.inspect import ComponentSize, Inspection
from bitsfusion.evaluation.card.scores import ScoreTable
from bitsfusion.evaluation.report.numbers import size

PAPER = "https://arxiv.org/abs/2406.04333"
BITS_PICTURE = "card/bits.png"


@dataclass(frozen=True)
class Sample:
    """A picture beside the card."""

    prompt: str
    seed: int
    file: str


@dataclass(frozen=True)
class Use:
    """How a pipeline is called: its scheduler's class where it is not the folder's own, with options that the folder's
    config lacks, and its steps."""

    scheduler: str | None
    options: Mapping[str, Any]
    steps: int | None
    guidance: float
    prompt: str


@dataclass(frozen=True)
class Card:
    """All that a card says.

    Fields:
        name: what `from_pretrained` is given: a hub id, or the folder's name.
        base_model: the original's hub id; None where it has none.
        license: of the hub's identifiers. parts: of the pipeline's folder.
        provenance: what the packed UNet says about its making. command: that made it. config: the file that it took.
    """

    name: str
    base_model: str | None
    license: str
    inspection: Inspection
    parts: Sequence[ComponentSize]
    use: Use
    scores: ScoreTable | None = None
    samples: Sequence[Sample] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    config: str = ""


def card_text(card: Card) -> str:
    """The whole README.md: the hub's YAML header and Markdown."""
    bits = card.inspection.average_bits
    of = f" of [{card.base_model}](https://huggingface.co/{card.base_model})" if card.base_model else ""
    sections = [
        f"---\n{yaml.safe_dump(_header(card), sort_keys=False, allow_unicode=True)}---\n",
        f"# {card.name.rpartition('/')[2]}, {bits:.2f} bits a weight\n",
        f"The UNet{of} at {bits:.2f} bits a weight, by the method of [BitsFusion]({PAPER}): every layer has its own "
        "1 to 8 bits, stored as real bits on disk and in memory.\n",
        _sizes(card),
        _loading(card),
        _scores(card),
        _samples(card),
        _recipe(card),
        _making(card),
    ]
    return "\n".join(section for section in sections if section)


def _header(card: Card) -> dict[str, Any]:
    header: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "license": card.license}
    if card.base_model:
        header |= {"base_model": card.base_model, "base_model_relation": "quantized"}
    return header | {"tags": ["bitsfusion", "quantization", "low-bit", "diffusers", "text-to-image"]}


def _sizes(card: Card) -> str:
    found = card.inspection
    disk, memory, dense = found.bytes_on_disk.total, found.bytes_in_memory, found.bytes_fp16
    rows = [
        ("bits a weight, by the paper's formula", f"{found.average_bits:.4f}"),
        ("bits a weight, as they lie on disk", f"{found.true_bits:.4f}"),
        ("bits a weight, all of the file", f"{found.file_bits:.4f}"),
        ("UNet on disk", f"{size(disk)}, {dense / disk:.1f} times smaller than {size(dense)} in FP16"),
        ("UNet in memory", f"{size(memory)}, {dense / memory:.1f} times smaller"),
        *(
            (f"{part.name} on disk", f"{size(part.bytes_on_disk)}, {part.form}")
            for part in card.parts
            if part.weights and part.name != "unet"
        ),
        ("the whole pipeline on disk", size(sum(part.bytes_on_disk for part in card.parts))),
    ]
    return "## Size\n\n" + table(("", ""), rows)


def _loading(card: Card) -> str:
    use = card.use
    imports, lines = "DiffusionPipeline", []
    if use.scheduler:
        imports += f", {use.scheduler}"
        options = "".join(f", {name}={value!r}" for name, value in use.options.items())
        lines.append(f"pipeline.scheduler = {use.scheduler}.from_config(pipeline.scheduler.config{options})")
    steps = "" if use.steps is None else f", num_inference_steps={use.steps}"
    code = [
        "import bitsfusion  # registers the format with diffusers",
        f"from diffusers import {imports}",
        "",
        f'pipeline = DiffusionPipeline.from_pretrained("{card.name}")',
        *lines,
        f"image = pipeline({use.prompt!r}{steps}, guidance_scale={use.guidance:g}).images[0]",
        'image.save("image.png")',
    ]
    features = card.inspection.time_features
    covered = ", ".join(f"{name} with {steps} steps" for name, steps in _samplers(features))
    note = ""
    if features.get("steps"):
        note = f"\nTime embeddings are stored for {covered or 'fixed time steps'}; other steps are refused by name.\n"
    body = "\n".join(code)
    return f"## Use\n\nWith `bitsfusion` installed beside diffusers:\n\n```python\n{body}\n```\n{note}"


def _samplers(features: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(entry["name"], entry["steps"]) for entry in features.get("samplers") or ()]


def _scores(card: Card) -> str:
    if card.scores is None:
        return ""
    said = "".join(f"- {name}: {value}\n" for name, value in card.scores.settings.items())
    return "## Scores\n\n" + table(card.scores.columns, card.scores.rows) + "\n" + said


def _samples(card: Card) -> str:
    if not card.samples:
        return ""
    rows = [(f"![]({sample.file})", escape(sample.prompt), str(sample.seed)) for sample in card.samples]
    return "## Samples\n\nDrawn by this model, none left out.\n\n" + table(("", "prompt", "seed"), rows)


def _recipe(card: Card) -> str:
    kept = ", ".join(f"`{name}`" for name in card.inspection.fallbacks) or "none"
    return (
        f"## Bits of each layer\n\n![Bits of each layer]({BITS_PICTURE})\n\n"
        "A bar is a layer: as wide as its weights, as high as its bits; the broken line is the average by the paper's "
        f"formula. Layers kept dense: {kept}.\n"
    )


def _making(card: Card) -> str:
    said = {
        key: value for key, value in card.provenance.items() if isinstance(value, (str, int, float)) and value != ""
    }
    lines = "".join(f"- {escape(key.replace('_', ' '))}: {escape(str(value))}\n" for key, value in said.items())
    if card.config:
        lines += f"- all settings: [{card.config}]({card.config})\n"
    command = f"\n```\n{card.command}\n```\n" if card.command else ""
    return f"## How it was made\n\n{lines}{command}" if lines or command else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """`text` so that Markdown shows it as it is, on one line."""
    marked = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#&~" else letter for letter in text)
    return " ".join(marked.split())
