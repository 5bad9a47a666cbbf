"""What each class of diffusion transformer is given, in shapes: for plans, calibration counts and benchmarks.

Names are the forward's own keywords, as `diffusion.conditioning` makes them. Texts have no padding, so that no mask is
needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_STATES = "encoder_hidden_states"


@dataclass(frozen=True)
class Inputs:
    """One class's inputs.

    Fields:
        texts: keyword -> the config's key for its width.
        pooled: the same, of one vector for a whole text.
        patch: latents on a side of a token, where the config's in_channels count whole patches; else 1.
        latent: height and width of the latents at 1024 pixels, where the config does not say.
        more_tokens: of a prompt beside those of `max_sequence_length`.
        compression: pixels on a side of a latent beyond what the VAE's own config says.
    """

    texts: Mapping[str, str]
    pooled: Mapping[str, str]
    patch: int = 1
    latent: int = 128
    more_tokens: int = 0
    compression: int = 1


def _of(width: str, keyword: str = _STATES, pooled: bool = False, **others: Any) -> Inputs:
    return Inputs({keyword: width}, {"pooled_projections": "pooled_projection_dim"} if pooled else {}, **others)


INPUTS: Mapping[str, Inputs] = {
    "AuraFlowTransformer2DModel": _of("joint_attention_dim"),
    "FluxTransformer2DModel": _of("joint_attention_dim", pooled=True, patch=2),
    "Flux2Transformer2DModel": _of("joint_attention_dim", latent=64, compression=2),
    "SD3Transformer2DModel": _of("joint_attention_dim", pooled=True, more_tokens=77),  # CLIP's, before T5's
    "PixArtTransformer2DModel": _of("caption_channels"),
    "SanaTransformer2DModel": _of("caption_channels", latent=32),
    "ZImageTransformer2DModel": _of("cap_feat_dim", "cap_feats"),
    "QwenImageTransformer2DModel": _of("joint_attention_dim", patch=2),
}
"""By the class's name in diffusers."""
