"""What int8 activations cost a trained model's output, with and without a Hadamard rotation before rounding.

    python benchmarks/rotation.py [--model embedded:flow] [--steps 8]

Inputs of linear layers are replaced by what their int8 form stands for: x becomes t round(x / t), t = max |x| / 127 of
each token, or H^T of that of H x, H a block-diagonal orthonormal Hadamard matrix of the largest power of two that
divides the width. Weights are not rounded. Errors are the norm of the difference over the norm: of the denoiser's
output over the calls of one batch of pictures, and of each layer's rounded input, the median over layers and the
largest. Beside them, the model in bfloat16, and in float32 with all weights at 2 bits, not trained.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bitsfusion.architectures.registry import model_layers
from bitsfusion.embedded import embedded_model
from bitsfusion.nn.replace import fake_quantize_model
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.load import load_pipeline

PROMPTS = 8


def rounded(x: Tensor) -> Tensor:
    step = x.abs().amax(-1, keepdim=True) / 127
    return torch.where(step > 0, (x / step).round() * step, x)


def hadamard(size: int) -> Tensor:
    """Orthonormal, [size, size]; size a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def rotated(x: Tensor) -> Tensor:
    matrix = hadamard(x.shape[-1] & -x.shape[-1])
    blocks = (x.unflatten(-1, (-1, len(matrix))) @ matrix).flatten(-2)
    return (rounded(blocks).unflatten(-1, (-1, len(matrix))) @ matrix.T).flatten(-2)


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded:flow")
    parser.add_argument("--steps", type=int, default=8)
    chosen = parser.parse_args()
    embedded = embedded_model(chosen.model)
    assert embedded is not None, f"model: got {chosen.model}, wanted an embedded one"
    pipeline = load_pipeline(chosen.model).to(torch.float32)
    model: nn.Module = getattr(pipeline, "transformer", None) or pipeline.unet
    calls: list[tuple[Any, Any, Tensor]] = []
    handle = model.register_forward_hook(
        lambda _, arguments, options, output: calls.append((arguments, options, output[0])), with_kwargs=True
    )
    prompts = [prompt.text for prompt in embedded.world.prompt_set("test", 2)][:PROMPTS]
    longest: dict[str, Any] = {"max_sequence_length": pipeline.tokenizer.model_max_length}
    options = longest if "max_sequence_length" in inspect.signature(pipeline.__call__).parameters else {}
    side: int = model.config.sample_size * pipeline.vae_scale_factor  # type: ignore[union-attr, operator]
    options |= {"height": side, "width": side, "generator": torch.Generator().manual_seed(0)}
    pipeline(prompts, num_inference_steps=chosen.steps, output_type="latent", **options)
    handle.remove()
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    print(f"{chosen.model}: {len(layers)} linear layers, {len(calls)} calls of {len(prompts)} pictures")
    for name, change in (("rounded", rounded), ("rotated", rotated)):
        errors: dict[nn.Module, list[float]] = {layer: [] for layer in layers}

        def replace(layer: nn.Module, inputs: tuple[Tensor, ...], change: Callable[[Tensor], Tensor] = change) -> Any:
            made = change(inputs[0])
            errors[layer].append(error(made, inputs[0]))  # noqa: B023  (hooks are gone before the loop goes on)
            return (made, *inputs[1:])

        hooks = [layer.register_forward_pre_hook(replace) for layer in layers]
        outputs = [error(model(*arguments, **keywords)[0], wanted) for arguments, keywords, wanted in calls]
        for hook in hooks:
            hook.remove()
        per_layer = [statistics.mean(found) for found in errors.values() if found]
        print(
            f"{name}: output {statistics.mean(outputs):.5f}, inputs of layers: "
            f"median {statistics.median(per_layer):.5f}, largest {max(per_layer):.5f}"
        )
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fake_quantize_model(model, dict.fromkeys(model_layers(model), 2), ScaleInit.EXACT)
    outputs = [error(model(*arguments, **keywords)[0], wanted) for arguments, keywords, wanted in calls]
    print(f"weights at 2 bits, float32: output {statistics.mean(outputs):.5f}")
    model = type(model).from_config(model.config).eval()  # type: ignore[attr-defined]
    model.load_state_dict(kept)
    model.to(torch.bfloat16)
    outputs = [
        error(model(*cast(arguments), **cast(keywords))[0].float(), wanted) for arguments, keywords, wanted in calls
    ]
    print(f"all of it in bfloat16: output {statistics.mean(outputs):.5f}")


def cast(values: Any) -> Any:
    """Floating tensors in bfloat16, in a tuple or a dict; one-dimensional ones, which are time steps, as they are."""
    if isinstance(values, dict):
        return {key: cast(value) for key, value in values.items()}
    if isinstance(values, tuple):
        return tuple(cast(value) for value in values)
    return (
        values.bfloat16() if isinstance(values, Tensor) and values.is_floating_point() and values.dim() > 1 else values
    )


if __name__ == "__main__":
    main()
