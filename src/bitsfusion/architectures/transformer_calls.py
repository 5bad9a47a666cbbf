"""One forward of each class of diffusion transformer, as the class's own pipeline calls it.

Latents go in and predictions come out as [n, c, h, w]; patches, positions and the counting of time are the class's
business. What `Conditioning` brings are the forward's own keywords.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitsfusion.architectures.conditioning import Conditioning

Call: TypeAlias = "Callable[[nn.Module, Tensor, Tensor, Conditioning], Tensor]"
"""(model, noisy, timesteps, conditioning) -> prediction; see `Denoiser.predict`."""


def aura_flow(model: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """AuraFlow: time in [0, 1]."""
    level = (timesteps.float() / 1000).to(noisy.dtype)
    output: Tensor = model(noisy, timestep=level, **conditioning.keywords(), return_dict=False)[0]
    return output


def sd3(model: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Stable Diffusion 3: latents and times as they are."""
    output: Tensor = model(hidden_states=noisy, timestep=timesteps, **conditioning.keywords(), return_dict=False)[0]
    return output


def pixart(model: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """PixArt: noise, and a variance that samplers do not use."""
    sizes = {"resolution": None, "aspect_ratio": None}
    given = conditioning.keywords()
    output: Tensor = model(noisy, timestep=timesteps, added_cond_kwargs=sizes, **given, return_dict=False)[0]
    return output[:, : noisy.shape[1]]


def sana(model: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Sana: time by the config's scale."""
    scale = _config(model).timestep_scale
    output: Tensor = model(noisy, timestep=timesteps * scale, **conditioning.keywords(), return_dict=False)[0]
    return output[:, : noisy.shape[1]]


def flux(model: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """FLUX.1: patches of 2x2 latents, at positions (0, row, column); texts at the origin."""
    import torch

    height, width = noisy.shape[-2] // 2, noisy.shape[-1] // 2
    given = conditioning.keywords()
    positions = _positions(torch.arange(1), torch.arange(height), torch.arange(width)).to(noisy)
    output: Tensor = model(
        hidden_states=to_patches(noisy),
        timestep=timesteps.to(noisy.dtype) / 1000,
        img_ids=positions,
        txt_ids=noisy.new_zeros(given["encoder_hidden_states"].shape[1], 3),
        **given,
        return_dict=False,
    )[0]
    return from_patches(output, height, width)


def flux2(model: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """FLUX.2: latents whose channels hold the patches already, at (0, row, column, 0); texts at (0, 0, 0, place)."""
    import torch

    count, channels, height, width = noisy.shape
    given = conditioning.keywords()
    tokens = given["encoder_hidden_states"].shape[1]
    one = torch.arange(1)
    image = _positions(one, torch.arange(height), torch.arange(width), one)
    text = _positions(one, one, one, torch.arange(tokens))
    output: Tensor = model(
        hidden_states=noisy.flatten(2).transpose(1, 2),
        timestep=timesteps.to(noisy.dtype) / 1000,
        img_ids=image.to(noisy.device).expand(count, -1, -1),
        txt_ids=text.to(noisy.device).expand(count, -1, -1),
        **given,
        return_dict=False,
    )[0]
    return output.transpose(1, 2).reshape(count, channels, height, width)


def z_image(model: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Z-Image: lists of samples, texts without padding, time from noise to image, and the velocity that way round."""
    import torch

    given = conditioning.keywords()
    masks = given.get("cap_mask")
    texts = list(given["cap_feats"])
    if masks is not None:
        texts = [states[mask] for states, mask in zip(texts, masks.bool(), strict=True)]
    images = list(noisy.unsqueeze(2).unbind(0))
    outputs = model(images, (1000 - timesteps) / 1000, texts, return_dict=False)[0]
    return -torch.stack(list(outputs)).squeeze(2)


def qwen_image(model: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Qwen-Image: patches of 2x2 latents; texts cut to the longest of the batch."""
    height, width = noisy.shape[-2] // 2, noisy.shape[-1] // 2
    given = conditioning.keywords()
    states, mask = given.pop("encoder_hidden_states"), given.pop("encoder_hidden_states_mask", None)
    if mask is not None:
        longest = int(mask.sum(1).max())
        states, mask = states[:, :longest], mask[:, :longest]
    output: Tensor = model(
        hidden_states=to_patches(noisy),
        timestep=timesteps.to(noisy.dtype) / 1000,
        encoder_hidden_states=states,
        encoder_hidden_states_mask=None if mask is None or bool(mask.all()) else mask,
        img_shapes=[[(1, height, width)]] * len(noisy),
        **given,
        return_dict=False,
    )[0]
    return from_patches(output, height, width)


def to_patches(latents: Tensor) -> Tensor:
    """[n, c, 2h, 2w] -> [n, h x w, 4c]: each patch's channels first, then its rows and columns."""
    count, channels, height, width = latents.shape
    parts = latents.reshape(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(count, height // 2 * (width // 2), channels * 4)


def from_patches(tokens: Tensor, height: int, width: int) -> Tensor:
    """[n, h x w, 4c] -> [n, c, 2h, 2w]."""
    count, _, values = tokens.shape
    parts = tokens.reshape(count, height, width, values // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(count, values // 4, 2 * height, 2 * width)


def _positions(*axes: Tensor) -> Tensor:
    """Every combination, [n, axes], the last axis fastest."""
    import torch

    return torch.cartesian_prod(*axes)


def _config(model: nn.Module) -> Any:
    return getattr(model, "module", model).config  # as DistributedDataParallel wraps it
