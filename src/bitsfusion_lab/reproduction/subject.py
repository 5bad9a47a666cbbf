"""What a row of a table is: a way to a small UNet that can be made, loaded and weighed."""

from __future__ import annotations

from typing import Any, Protocol

from bitsfusion_lab.reproduction.frame import Frame


class Subject(Protocol):
    """One method with all its options. Its name says them, so that tables share what they have in common."""

    @property
    def name(self) -> str:
        """The name of its folders."""

    @property
    def trained(self) -> bool:
        """Whether it has randomness of its own: then it is made once for each training seed, otherwise once."""

    def make(self, frame: Frame, seed: int) -> None:
        """Makes what is not there yet, by the frame's steps."""

    def load(self, frame: Frame, seed: int) -> Any:
        """The finished UNet, to draw with."""

    def made(self, frame: Frame, seed: int) -> dict[str, str]:
        """The SHA-256 of what it was made as, for what depends on it."""

    def size(self, frame: Frame, seed: int) -> tuple[float, int]:
        """(bits a weight as the method counts them, bytes of the weight file that was written)."""
