"""`torch.compile` of a packed UNet: one graph, the same numbers, the same error for a step that is not covered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from bitsfusion.errors import InputError

from .drawing import inputs, load


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("folder", "eager"),
        pytest.param("folder", "aot_eager", marks=pytest.mark.slow),
        pytest.param("any_step_folder", "aot_eager", marks=pytest.mark.slow),
        pytest.param("folder", "inductor", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_one_graph(request: pytest.FixtureRequest, name: str, backend: str) -> None:
    unet = UNet2DConditionModel.from_pretrained(request.getfixturevalue(name) / "unet")
    assert unet.hf_quantizer.is_compileable
    latents, step, states = inputs(unet)
    expected = unet(latents, step, states).sample
    compiled = torch.compile(unet, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(latents, step, states).sample, expected, rtol=1e-5, atol=1e-5)
    if name == "folder":
        with pytest.raises(InputError, match="time step 750 is not cached: this model covers pndm 4 steps, dpm 3"):
            compiled(latents, torch.tensor(750), states)


def test_compiling_in_place_and_saving(folder: Path, tmp_path: Path) -> None:
    from bitsfusion.artifact.verify import verify_folder

    pipeline = load(folder)
    pipeline.unet = torch.compile(pipeline.unet, backend="aot_eager", fullgraph=True)
    pipeline.save_pretrained(tmp_path / "again")
    verify_folder(tmp_path / "again")


@pytest.mark.gpu
@torch.no_grad()
def test_on_cuda(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float16).to("cuda")
    expected = unet(*inputs(unet)).sample
    for mode in ("default", "reduce-overhead"):
        torch.compiler.reset()
        compiled = torch.compile(unet, mode=mode, fullgraph=True)
        for _ in range(3):
            torch.testing.assert_close(compiled(*inputs(unet)).sample, expected, rtol=1e-2, atol=1e-2)
