import pytest
import torch

from bitsfusion_lab.embedding.grid_world import TrainedGridWorld
from bitsfusion_lab.embedding.stages import run_stages
from bitsfusion_lab.embedding.state import TrainState, averaged_weights


def train(folder, until, steps=12):
    torch.manual_seed(0)
    state = TrainState({"line": torch.nn.Linear(3, 2)}, folder, 1e-2, steps, 0.9)
    while state.step < until:
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(state.step))
        state.update(state.modules["line"](inputs).square().mean())
    state.save()
    return state


def test_a_resumed_training_ends_where_a_whole_one_does(tmp_path):
    train(tmp_path / "whole", 12)
    train(tmp_path / "broken", 5)
    assert train(tmp_path / "broken", 12).step == 12
    whole, broken = averaged_weights(tmp_path / "whole"), averaged_weights(tmp_path / "broken")
    assert all(torch.equal(whole["line"][name], broken["line"][name]) for name in whole["line"])


@pytest.mark.slow
def test_the_stages_make_a_pipeline_and_a_scorer(tmp_path, monkeypatch):
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

    for stage in ("unet", "vae", "scorer", "export"):
        options = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--steps", "2"]
        monkeypatch.setattr("sys.argv", ["train", stage, *options])
        run_stages(TrainedGridWorld(), "", {}, ("pipeline", "scorer"))
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline", safety_checker=None)
    images = pipeline(["a small ring"], num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 64, 64, 3)
    assert CLIPModel.from_pretrained(tmp_path / "out" / "scorer").config.projection_dim == 64
