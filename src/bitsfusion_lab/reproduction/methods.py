"""Table 3: the rivals and ours, each with the same data, steps and seeds."""

from __future__ import annotations

from dataclasses import replace

from bitsfusion_lab.reproduction.calibrated import Palettized, QDiffusion
from bitsfusion_lab.reproduction.ladder import OURS, PAPER
from bitsfusion_lab.reproduction.peer import Peer
from bitsfusion_lab.reproduction.student import Levels, Student
from bitsfusion_lab.reproduction.table import Row, Table

LSQ = Student(levels=Levels.LSQ, scale_init=None, joined=True)
EFFICIENT_DM = Student(levels=Levels.EFFICIENT_DM, scale_init=None, joined=True)
PEERS = (
    ("quanto, 2 bits", Peer("quanto-int2", 2)),
    ("SDNQ, 2 bits", Peer("sdnq-int2", 2)),
    ("SDNQ, 4 bits", Peer("sdnq-uint4", 4)),
)


def table3() -> Table:
    """The published CLIP scores are over 1000 PartiPrompts."""
    return Table(
        3,
        "the rivals and ours",
        (
            Row("LSQ, 2 bits", LSQ, 0.2849),
            Row("Q-Diffusion, 4 bits", QDiffusion(), 0.3137),
            Row("EfficientDM, 2 bits", EFFICIENT_DM, 0.2918),
            Row("mixed palettes (Apple), 2 bits", Palettized(), 0.3023),
            *(_peer_row(label, peer) for label, peer in PEERS),
            Row("BitsFusion, as published (Alg. 1 alone)", replace(PAPER, filled=False), 0.3212),
            Row("BitsFusion, the bits left spent, too", PAPER),
            Row("bitsfusion: exact, optimal, uniform steps", OURS),
        ),
        published_full_precision=0.3175,
        note="LSQ and EfficientDM train for the steps of both stages together; Q-Diffusion has as many iterations a "
        "block as Stage I has steps; palettes, quanto and SDNQ are not trained. Each file holds its codes under zstd "
        "where that is smaller, as ours do; quanto and SDNQ write their own files, in bfloat16, everything else keeps "
        "32 bits beside the codes. Sensitivity is by noise error here, unless --sensitivity gives the paper's own; the "
        "row after the published one spends what Alg. 1 leaves of the bits. The paper's scores are of SD-v1.5.",
    )


def _peer_row(label: str, peer: Peer) -> Row:
    if peer.version is None:
        return Row(label, None, missing="not installed: pip install 'bitsfusion[peers]'")
    return Row(label, peer)
