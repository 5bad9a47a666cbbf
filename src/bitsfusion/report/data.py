"""What a report shows, as plain data: filled from a run folder, never changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bitsfusion.artifact.inspect import Inspection
from bitsfusion.evaluation.estimates import Difference, Verdict
from bitsfusion.metrics.geneval import GenEvalSummary
from bitsfusion.report.scores import ScoreTable
from bitsfusion.vote.results import VoteResults


@dataclass(frozen=True)
class SeedScores:
    """One training seed's means; a figure that was not measured is None."""

    seed: int
    geneval: float | None = None
    clip_score: float | None = None
    noise_error: float | None = None
    noise_loss: float | None = None


@dataclass(frozen=True)
class Rung:
    """One model of the ladder; a figure that was not measured is None.

    Fields:
        name: as in `summary.json`: full_precision, init, stage1, stage2, control ...
        label: the same in words, short.
        note: what was done to get here, one line.
        bits: bits a weight by the paper's count (Appendix H); 32 or 16 for an unquantized model.
        clip_score: mean CLIP score. image_mse: against full precision's images, same prompts and seeds.
        noise_error: mean squared difference of predicted noise to the teacher's. noise_loss: to the true noise.
        seconds: what it took to make this rung from the one before.
        difference: how much more often than the reference's its images are right. verdict: what that shows.
        seeds: of a rung that was trained several times, each by itself.
    """

    name: str
    label: str
    bits: float | None = None
    note: str = ""
    geneval: GenEvalSummary | None = None
    clip_score: float | None = None
    image_mse: float | None = None
    noise_error: float | None = None
    noise_loss: float | None = None
    seconds: float | None = None
    difference: Difference | None = None
    verdict: Verdict | None = None
    seeds: Sequence[SeedScores] = ()


@dataclass(frozen=True)
class Pictures:
    """Images of the same prompts and seeds from several rungs.

    Fields:
        prompts: n prompts.
        images: rung name -> uint8 [n, h, w, 3].
        passed: rung name -> n marks, whether the image shows what was asked; rungs may be left out.
    """

    prompts: Sequence[str]
    images: Mapping[str, npt.NDArray[np.uint8]]
    passed: Mapping[str, Sequence[bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerRow:
    """One layer in the network's order: `error` as measured alone, `entropy` in bits a weight."""

    name: str
    kind: str
    weights: int
    bits: int
    error: float | None = None
    entropy: float | None = None


def layer_rows(inspection: Inspection, errors: Mapping[tuple[str, int], float] | None = None) -> list[LayerRow]:
    """Every packed layer; `errors`: (name, bits) -> the error as measured alone, where it was."""
    known = errors or {}
    return [
        LayerRow(x.name, x.kind, x.weights, x.bits, known.get((x.name, x.bits)), x.entropy) for x in inspection.layers
    ]


@dataclass(frozen=True)
class Sizes:
    """Bytes of the quantized part of the model, `what`.

    Fields:
        weights: how many weights the fp16 form has in its linear and conv layers.
        fp16_bytes: the original at 16 bits. counted_bytes: by the paper's count. entropy_bytes: the order-0
            bound of the levels, with all else stored. disk_bytes: the files, measured. memory_bytes: once loaded.
        categories: where the bytes on disk are; they sum to disk_bytes.
    """

    fp16_bytes: int
    disk_bytes: int
    weights: int | None = None
    counted_bytes: int | None = None
    entropy_bytes: int | None = None
    memory_bytes: int | None = None
    categories: Mapping[str, int] = field(default_factory=dict)
    what: str = "UNet"


@dataclass(frozen=True)
class Curve:
    """A line of a chart: y over x, both of the same length."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class ReportData:
    """All of a report. `reference` and `final` name the two rungs that the first lines compare.

    Fields:
        step_errors: the latent error over the time step (Eq. 9), a curve a rung.
        losses: the training loss over the step, a curve a stage.
        votes: what people preferred. evaluated: what `bitsfusion evaluate` measured.
        settings: what to know to do it again, name -> value. command: the line that made it.
    """

    title: str
    model: str
    rungs: Sequence[Rung]
    final: str
    sizes: Sizes
    reference: str = "full_precision"
    pictures: Pictures | None = None
    layers: Sequence[LayerRow] = ()
    step_errors: Sequence[Curve] = ()
    losses: Sequence[Curve] = ()
    votes: VoteResults | None = None
    evaluated: ScoreTable | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    command: str = ""

    def rung(self, name: str) -> Rung:
        """The rung of that name."""
        return next(rung for rung in self.rungs if rung.name == name)
