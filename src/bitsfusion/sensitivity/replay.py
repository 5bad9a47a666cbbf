"""Block outputs kept for fixed inputs, so that a change in one layer reruns only what comes after it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from bitsfusion.architectures.registry import denoiser_of

Result = TypeVar("Result")


@dataclass(frozen=True)
class Recording:
    """What every stage returned in one run, and when it began and ended (counted in stage events)."""

    outputs: dict[str, Any]
    began: dict[str, int]
    ended: dict[str, int]

    def before(self, layer: str) -> dict[str, Any]:
        """Outputs of the stages that ended before the innermost stage that holds `layer` began.

        For a layer outside all stages there are none, so that everything runs.
        """
        holding = [name for name in self.outputs if layer.startswith(name + ".")]
        if not holding:
            return {}
        start = self.began[max(holding, key=len)]
        return {name: output for name, output in self.outputs.items() if self.ended[name] < start}


class Replay:
    """The stages of a denoiser, see `Denoiser.stages`: of a UNet its blocks, and the ResBlocks and attentions in them.

    A stage that is replayed returns what it returned when it was recorded, the very same tensors, without
    computing anything; the rest of the model's own forward runs as always. Results are therefore equal bit for bit.
    A recording holds all stages' outputs in memory: for SD-v1.5 at 512 x 512 pixels in float32 about 120 MB a sample.
    """

    def __init__(self, unet: nn.Module) -> None:
        self.stages = denoiser_of(unet).stages(unet)

    def record(self, run: Callable[[], Result]) -> tuple[Result, Recording]:
        """Runs `run`, one forward of the UNet; returns its result and the recording of it."""
        recording = Recording({}, {}, {})
        clock = 0

        def begin(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                nonlocal clock
                recording.began[name] = clock
                clock += 1

            return hook

        def end(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                nonlocal clock
                recording.outputs[name], recording.ended[name] = output, clock
                clock += 1

            return hook

        handles = []
        try:
            for name, module in self.stages.items():
                handles.append(module.register_forward_pre_hook(begin(name)))
                handles.append(module.register_forward_hook(end(name)))
            result = run()
        finally:
            for handle in handles:
                handle.remove()
        return result, recording

    @contextlib.contextmanager
    def replaying(self, recording: Recording, layer: str) -> Iterator[None]:
        """Inside, a forward of the UNet on the recorded inputs starts where `layer` first matters."""
        replaced: dict[str, Any] = {}
        try:
            for name, output in recording.before(layer).items():
                own = vars(self.stages[name])
                replaced[name] = own.get("forward")
                own["forward"] = lambda *_args, _output=output, **_kwargs: _output
            yield
        finally:
            for name, forward in replaced.items():
                own = vars(self.stages[name])
                if forward is None:
                    del own["forward"]
                else:
                    own["forward"] = forward
