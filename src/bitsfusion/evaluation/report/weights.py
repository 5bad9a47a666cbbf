"""Where a model's bits and bytes are: sizes side by side, and bits layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from bitsfusion.evaluation.report.figures import HUES, layer_plot, legend, section, stacked_bar
from bitsfusion.evaluation.report.numbers import number, size
from bitsfusion.evaluation.report_data import LayerRow, Sizes


def byte_bars(sizes: Sizes) -> str:
    """The sizes as bars, and what the bytes on disk are."""
    rows = [
        ("Original at 16 bits", sizes.fp16_bytes, "fp16"),
        ("Paper’s count", sizes.counted_bytes, ""),
        ("Entropy bound", sizes.entropy_bytes, ""),
        ("On disk, measured", sizes.disk_bytes, "final"),
        ("In memory", sizes.memory_bytes, ""),
    ]
    largest = max(value for _, value, _ in rows if value)
    bars = "".join(
        f'<li class="{style}"><span>{name}</span><i style="width:{100 * value / largest:.2f}%"></i>'
        f"<b>{size(value)}</b></li>"
        for name, value, style in rows
        if value is not None
    )
    parts = ""
    if sizes.categories:
        ordered = sorted(sizes.categories.items(), key=lambda item: -item[1])
        bar = stacked_bar([(count, f"hue{i % HUES}") for i, (_, count) in enumerate(ordered)])
        labels = {f"{name} {size(count)}": f"hue{i % HUES}" for i, (name, count) in enumerate(ordered)}
        parts = f"<h3>What the bytes on disk are</h3>{bar}{legend(labels)}"
    return section(f"Size of the {sizes.what}", "", f'<ul class="bars">{bars}</ul>{parts}')


def layer_bits(layers: Sequence[LayerRow]) -> str:
    """A bar a layer, the share of the weights by b, and the whole table folded away."""
    if not layers:
        return ""
    by_kind: Counter[str] = Counter()
    by_bits: Counter[int] = Counter()
    for layer in layers:
        by_kind[layer.kind] += layer.weights
        by_bits[layer.bits] += layer.weights
    hue_of = {kind: f"hue{min(i, HUES - 1)}" for i, (kind, _) in enumerate(by_kind.most_common())}
    named = HUES if len(hue_of) <= HUES else HUES - 1
    kinds = dict(list(hue_of.items())[:named])
    if len(hue_of) > HUES:
        kinds["other"] = f"hue{HUES - 1}"
    shares = {b: 100 * by_bits[b] / by_bits.total() for b in sorted(by_bits)}
    labels = {f"{b} bit{'s' * (b > 1)}: {share:.1f} %": f"step{b}" for b, share in shares.items()}
    bar = stacked_bar([(share, f"step{b}") for b, share in shares.items()])
    body = (
        f"{legend(kinds)}{layer_plot(layers, hue_of)}<h3>Share of the weights by b</h3>{bar}{legend(labels)}"
        f"<details><summary>All {len(layers)} layers</summary>{_table(layers)}</details>"
    )
    lead = "A bar is a layer: as wide as its weights, as high as its b, so that its area is its size."
    return section("Bits, layer by layer", lead, body)


def _table(layers: Sequence[LayerRow]) -> str:
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Layer", "Kind", "Weights", "b", "Entropy, bits", "Error alone")
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(layer.name)}</th><td>{escape(layer.kind)}</td><td>{layer.weights:,}</td>'
        f"<td>{layer.bits}</td><td>{number(layer.entropy)}</td><td>{number(layer.error)}</td></tr>"
        for layer in layers
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="All layers"><table class="layers">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
