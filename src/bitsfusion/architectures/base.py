"""What a family of models has to say about itself; one file beside this one for each family."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bitsfusion.architectures.layers import FIXED_BITS, LayerInfo, LayerRole
from bitsfusion.architectures.shapes import NotKnownError, Shapes
from bitsfusion.architectures.timing import Timing
from bitsfusion.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bitsfusion.architectures.conditioning import Conditioning

STEERING = ("transformers_weights", "auto_map", "attn_implementation", "experts_implementation", "fusion_config")
"""Keys (and all with a leading _) by which a config.json makes transformers take other files or code than its own."""

TRAINING_COUNTER = "num_batches_tracked"
"""A buffer of batch norms that inference has no use for."""

DIFFUSERS_FILE, TRANSFORMERS_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"


@dataclass(frozen=True)
class Architecture:
    """One class of model: who builds it, which of its layers are packed, and the part that each plays.

    Fields:
        name: of the class in its library.
        noun: what messages call such a model.
        library: whose `from_pretrained` loads it.
        component: its usual name in a pipeline.
        layers: the kinds of layers of torch.nn that are packed, all of them: none is kept dense.
    """

    name: str
    noun: str
    library: Literal["diffusers", "transformers"]
    component: str
    layers: tuple[str, ...]

    @property
    def weights(self) -> str:
        """The name of its one safetensors file."""
        return DIFFUSERS_FILE if self.library == "diffusers" else TRANSFORMERS_FILE

    @property
    def timed(self) -> bool:
        """Whether it has layers of the time step."""
        return False

    @property
    def time_bits(self) -> int:
        """About what the layers of the time step have where they stay."""
        return FIXED_BITS if self.timing is None else self.timing.bits

    @property
    def note(self) -> str | None:
        """What packing it leaves to say, in plain words; None where there is nothing."""
        return None

    @property
    def timing(self) -> Timing | None:
        """Which modulation layers see the time step alone; None for UNets, which have projections of their own."""
        return None

    @property
    def modulated_by(self) -> str:
        """What beside the time step enters every modulation layer, in words; "" where nothing does."""
        return ""

    @property
    def modulation_stays(self) -> str | None:
        """Why no features can stand for its modulation layers, in plain words; None where nothing is to be said."""
        others = self.modulated_by
        return f"modulation layers keep their bits: {others} enters them, too" if others else None

    def role(self, name: str) -> LayerRole:
        """The part that the layer of this name plays."""
        raise NotImplementedError

    def kind(self, name: str) -> str:
        """What the layer of this name is there for, in words."""
        return "projection"

    def feature_values(self, name: str, out_channels: int) -> int:
        """Values that time-embedding caching stores at each step for the layer of this name."""
        return 0

    def shapes(self, config: Mapping[str, Any]) -> Shapes | None:
        """Every tensor's name and shape in the dense model of a config.json, in module order; no model is built.

        None where the config holds anything that this does not know, be it wrong or not: then `build` decides.
        """
        try:
            return self._shapes(config)
        except NotKnownError:
            return None

    def _shapes(self, config: Mapping[str, Any]) -> Shapes:
        """The same, or `NotKnownError`."""
        raise NotKnownError

    def build(self, config: Mapping[str, Any], device: str = "meta") -> nn.Module:
        """The dense model of a config.json, for inference; raises whatever the class meets."""
        import torch

        made: Any = getattr(importlib.import_module(self.library), self.name)
        with torch.device(device):
            if self.library == "diffusers":
                model: nn.Module = made.from_config(dict(config))
            else:
                model = made(made.config_class.from_dict(without_steering(config)))
        return model.eval()

    def stored_names(self, model: Any, stored: Mapping[str, object]) -> dict[str, str]:
        """The names in files of older versions of the library: parameter of `model` -> its name in `stored`.

        Names of `stored` that are of no parameter stand for themselves.
        """
        if self.library == "diffusers":  # old attention blocks have other names; diffusers says which stand for which
            names: dict[str, str] = model._fix_state_dict_keys_on_load({name: name for name in stored})
            return names
        return {name: name for name in stored}

    def current_names(self, known: Collection[str], stored: Collection[str]) -> dict[str, str] | None:
        """`stored_names` by names alone: each of `known` -> its name in `stored`; None where a model must say."""
        return {name: name for name in stored} if set(known) == set(stored) else None

    def tied(self, model: nn.Module) -> dict[str, str]:
        """Layers that have no weight of their own: name -> the name of the layer whose weight they use."""
        return {}

    def passed_over(self, model: nn.Module) -> set[str]:
        """Names of the state dict that are not stored: weights of other layers, and counters of training."""
        tied = self.tied(model)
        return {
            name
            for name in model.state_dict()
            if name.rpartition(".")[0] in tied or name.rpartition(".")[2] == TRAINING_COUNTER
        }

    def modules(self, model: nn.Module) -> dict[str, Any]:
        """The layers that are packed, or are to be, by name in module order; on meta too."""
        from torch import nn

        tied = self.tied(model)
        kinds = tuple(getattr(nn, kind) for kind in self.layers)
        layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
        return {name: module for name, module in layers.items() if name not in tied}

    def layer_infos(self, model: nn.Module) -> dict[str, LayerInfo]:
        """Name, role and shape of the same, dense or packed."""
        return {name: self.layer_info(name, module) for name, module in self.modules(model).items()}

    def layer_info(self, name: str, module: Any) -> LayerInfo:
        """One of them."""
        shape = getattr(module, "weight_shape", None) or tuple(module.weight.shape)
        return LayerInfo(name, self.role(name), shape, self.kind(name))


@dataclass(frozen=True)
class Denoiser(Architecture):
    """A model that predicts noise, velocity or v: what a pipeline calls once a step.

    Its blocks are named in the order of the forward, each once.
    """

    def predict(self, model: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward: the prediction, in the shape of `noisy`. Only `diffusion.denoise` calls it.

        Args:
            model: of this class, or wrapped for training on several devices.
            noisy: [n, c, h, w].
            timesteps: [n], as the scheduler counts them.
            conditioning: n rows.

        Raises:
            InputError: a class without a family of its own (and so in what follows).
        """
        raise self._not_known

    def feature_blocks(self, model: nn.Module) -> list[nn.Module]:
        """The blocks whose outputs feature distillation compares (Eq. 7)."""
        raise self._not_known

    def features(self, output: Any) -> Sequence[Tensor]:
        """What of a feature block's output is compared."""
        return output[:1] if isinstance(output, tuple) else (output,)

    def stages(self, model: nn.Module) -> dict[str, nn.Module]:
        """Modules that run one after the other, or within one another, each once: what a replay can skip."""
        raise self._not_known

    def units(self, model: nn.Module) -> list[nn.Module]:
        """The smallest repeated modules: sharding gathers them, gradient checkpointing runs them again, one by one."""
        raise self._not_known

    def example(
        self, config: Mapping[str, Any], batch: int, latent: int, tokens: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Conditioning]:
        """A noisy sample and its conditioning in the shapes that the config asks for, Gaussian, float32.

        Args:
            config: the model's.
            batch, latent: of the sample, `latent` being its height and width.
            tokens: of a prompt.
            generator: of the values.

        Raises:
            InputError: a model that is given more than texts, sizes and a step.
        """
        raise self._not_known

    @property
    def _not_known(self) -> InputError:
        return InputError(
            f"{self.name}: got a {self.noun} without a family of its own, whose conditioning is not known, wanted one "
            "of a class that is trained: others are packed, calibrated and drawn with only"
        )

    def latent_size(self, config: Mapping[str, Any]) -> int:
        """Height and width of the latents that the model was made for."""
        return int(config["sample_size"])

    @property
    def compression(self) -> int:
        """VAE latents on a side of one of its own: 2 where its channels hold patches."""
        return 1

    def patch(self, config: Mapping[str, Any]) -> int:
        """Latents on a side of one of its tokens."""
        return 1

    def prompt_tokens(self, tokens: int) -> int:
        """Tokens that it is given for a prompt that its pipeline pads to `tokens`."""
        return tokens


def without_steering(config: Mapping[str, Any]) -> dict[str, Any]:
    """A transformers config with nothing in it but the model."""
    return {key: value for key, value in config.items() if key not in STEERING and not key.startswith("_")}
