"""Time features of every step: a few directions, and a smooth curve of coordinates over continuous time.

    features(t) = mean + coordinates(t) @ basis

The coordinates are cubic splines, so that fractional steps are as good as whole ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bitsfusion.diffusion.time_features.spline import Knots, spline_values


@dataclass(frozen=True)
class TimeBasis:
    """Time features over continuous time.

    Fields:
        mean: [channels].
        basis: [rank, channels].
        curve: [points, rank], control points of the coordinates over `knots`.
        knots: of the curve; its ends are the first and the last time step that are covered.
        error: root mean square deviation over all integer steps, relative to that of the features from their mean.
    """

    mean: Tensor
    basis: Tensor
    curve: Tensor
    knots: Knots
    error: float

    @property
    def rank(self) -> int:
        """Directions beside the mean."""
        return int(self.basis.shape[0])

    @property
    def channels(self) -> int:
        """Values of one step."""
        return int(self.basis.shape[1])

    @property
    def values(self) -> int:
        """Numbers to store."""
        return self.mean.numel() + self.basis.numel() + self.curve.numel()

    def __str__(self) -> str:
        return f"every step from {self.knots.start} to {self.knots.end}"

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by the name behind `time_proj.`."""
        return {"mean": self.mean, "basis": self.basis, "curve": self.curve}


def basis_features(mean: Tensor, basis: Tensor, curve: Tensor, timesteps: Tensor, knots: Knots) -> Tensor:
    """The features at some time steps, computed in float32 on the tensors' device, without a look at the values.

    Args:
        mean, basis, curve: see `TimeBasis`; of any floating dtype.
        timesteps: [n] of any real dtype.

    Returns:
        [n, channels] in the dtype of `basis`; NaN for a step that the knots do not reach.
    """
    asked = timesteps.to(basis.device).float()
    features = mean.float() + spline_values(curve.float(), asked, knots) @ basis.float()
    inside = (asked >= knots.start) & (asked <= knots.end)
    return features.masked_fill(~inside[:, None], float("nan")).to(basis.dtype)
