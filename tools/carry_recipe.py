"""The base recipe of SDXL: Stable Diffusion v1.5's published one carried over by what a layer is and how large.

    python tools/carry_recipe.py src/bitsfusion/recipe/recipes/sdxl.json

The published bits are fitted by least squares as a number for each place of a layer in its block (attn2.to_k,
ff.net.2, conv_shortcut, ...) plus a slope times log2 of its weights. SDXL's layers get what the fit says, shifted by
one number until the average is 1.99 (Appendix H, time and size embeddings at 8 bits), rounded, from 1 to 7; what is
left goes a bit each to those that were rounded down furthest. Nothing of it was measured on SDXL.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from shaped_pipeline import UNETS

from bitsfusion.architectures.layers import FIRST_LAST_BITS, LayerInfo, LayerRole
from bitsfusion.architectures.registry import model_layers
from bitsfusion.io.texts import write_text
from bitsfusion.packing.accounting import average_bits
from bitsfusion.recipe.published import published_recipe, published_weights

TARGET, LEAST, MOST = 1.99, 1, 7
PLACE = re.compile(
    r"(proj_in|proj_out|attn\d\.to_(?:q|k|v|out\.0)|ff\.net\.\d|conv\d|conv_shortcut|(?:down|up)samplers\.0\.conv)"
)


def place(name: str) -> str:
    """What a layer is in its block."""
    found = PLACE.search(name)
    assert found, name
    return found[1]


def needs(layers: dict[str, LayerInfo]) -> dict[str, float]:
    """What the fit says for each layer that is assigned bits, before the shift."""
    bits, weights = published_recipe("sd15"), published_weights("sd15")
    known = [name for name in bits if name not in ("conv_in", "conv_out")]
    places = sorted({place(name) for name in known})
    rows = np.array([[place(n) == p for p in places] + [math.log2(weights[n])] for n in known], dtype=np.float64)
    solved = np.linalg.lstsq(rows, np.array([bits[n] for n in known], dtype=np.float64), rcond=None)[0]
    own, slope = dict(zip(places, solved[:-1], strict=True)), float(solved[-1])
    return {
        name: float(own[place(name)] + slope * math.log2(layer.numel))
        for name, layer in layers.items()
        if layer.role is LayerRole.QUANTIZED
    }


def main() -> None:
    with torch.device("meta"):
        layers = model_layers(UNet2DConditionModel(**UNETS["sdxl"]))
    wanted, weights = needs(layers), {name: layer.numel for name, layer in layers.items()}
    stays = {name: FIRST_LAST_BITS for name in layers if name not in wanted}

    def shifted(by: float) -> dict[str, int]:
        return {name: int(np.clip(round(need + by), LEAST, MOST)) for name, need in wanted.items()}

    low, high = -MOST, MOST
    for _ in range(60):
        middle = (low + high) / 2
        over = average_bits(weights, stays | shifted(middle), 0) > TARGET
        low, high = (low, middle) if over else (middle, high)
    chosen = shifted(low)
    for name in sorted(chosen, key=lambda name: chosen[name] - wanted[name]):  # what many equal layers leave unspent
        more = chosen | {name: chosen[name] + 1}
        if chosen[name] < MOST and average_bits(weights, stays | more, 0) <= TARGET:
            chosen = more
    kept = [name for name, layer in layers.items() if layer.role is LayerRole.FIRST_LAST]
    bits = {name: chosen.get(name, FIRST_LAST_BITS) for name in layers if name in chosen or name in kept}
    source = (
        "bitsfusion's base recipe of SDXL's UNet: the published one of SD-v1.5 carried over by what a layer is and "
    )
    source += "how large (tools/carry_recipe.py); not measured on SDXL. Time and size embeddings stay, at 8 bits."
    content = {"source": source, "bits": bits, "weights": weights}
    write_text(Path(sys.argv[1]), json.dumps(content, indent=1) + "\n")
    shares = {b: sum(weights[n] for n, count in chosen.items() if count == b) for b in range(LEAST, MOST + 1)}
    print(f"{average_bits(weights, stays | chosen, 0):.5f} bits; weights by b:")
    print({b: f"{share / sum(weights.values()):.1%}" for b, share in shares.items()})


if __name__ == "__main__":
    main()
