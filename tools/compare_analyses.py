"""The cheaper analyses against a table of the paper's procedure: rank correlation for each bit width, and cost.

python tools/compare_analyses.py runs/embedded_full/sensitivity.json

All are timed in this process, in turn, on the embedded model: single candidates of the paper's procedure with the
settings of that table, spread over the layers, and whole analyses of the others. Medians over --rounds. Also counted:
latents through the UNet, a backward pass as one more (of activations alone) or two more (of weights too).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitsfusion.pipelines.load import load_pipeline
from bitsfusion.runs.config import RunConfig
from bitsfusion.runs.sources import training_data
from bitsfusion.sensitivity.correlation import correlate_tables
from bitsfusion.sensitivity.jacobian import Jacobian
from bitsfusion.sensitivity.measure import candidates
from bitsfusion.sensitivity.noise_error import NoiseError
from bitsfusion.sensitivity.paper import PaperMethod
from bitsfusion.sensitivity.passes import forward_passes
from bitsfusion.sensitivity.settings import JacobianSettings, NoiseErrorSettings, PaperSettings
from bitsfusion.sensitivity.table import MEASURED_BITS, SensitivityTable, read_table
from bitsfusion.sensitivity.workers import OneProcess

PAPER_CANDIDATES = 4  # timed in each round
OWN_KEYS = ("samplers", "data", "clip_scorer", "lpips")  # of a table's settings: not of the method


def analyses(seed: int) -> dict[str, NoiseErrorSettings | JacobianSettings]:
    """The cheaper ones, by what they are called in the table."""
    found: dict[str, NoiseErrorSettings | JacobianSettings] = {}
    for samples in (16, 64, 256):
        found[f"jacobian, {samples} latents"] = JacobianSettings(samples=samples, seed=seed)
    found["jacobian, 64 latents, no guidance"] = JacobianSettings(samples=64, guidance=1.0, seed=seed)
    for reuse in (True, False):
        kept = "kept" if reuse else "not kept"
        for samples in (16, 64):
            settings = NoiseErrorSettings(samples=samples, reuse_activations=reuse, seed=seed)
            found[f"noise_error, {samples} latents, activations {kept}"] = settings
    found["noise_error, 16 latents, guidance, activations kept"] = NoiseErrorSettings(
        samples=16, guidance=7.5, seed=seed
    )
    return found


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long `work` took, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    reference = read_table(options.reference)
    paper_settings = PaperSettings.model_validate(
        {key: value for key, value in reference.settings.items() if key not in OWN_KEYS}
    )
    pipeline = load_pipeline("embedded")
    data = training_data(RunConfig().data, pipeline, "train")
    every = candidates(reference)
    paper = PaperMethod(pipeline, paper_settings, data)

    def whole(settings: NoiseErrorSettings | JacobianSettings) -> SensitivityTable:
        if isinstance(settings, JacobianSettings):
            rows = list(Jacobian(pipeline, settings, data).rows(every))
        else:
            rows = list(OneProcess(lambda: NoiseError(pipeline, settings, data)).rows(every))
        return reference.model_copy(update={"rows": rows, "method": settings.method})

    took: dict[str, list[float]] = {}
    ranks: dict[str, list[list[float]]] = {}
    of_paper: list[float] = []
    for number in range(options.rounds):
        for place in range(PAPER_CANDIDATES):
            candidate = every[(number + place * options.rounds) * len(every) // (PAPER_CANDIDATES * options.rounds)]
            of_paper.append(seconds(lambda candidate=candidate: paper.measure(*candidate))[0])
        for name, settings in analyses(seed=number).items():
            spent, table = seconds(lambda settings=settings: whole(settings))
            took.setdefault(name, []).append(spent)
            found = correlate_tables(table, reference)
            ranks.setdefault(name, []).append([found[bits].spearman or 0.0 for bits in MEASURED_BITS])
    all_paper = statistics.median(of_paper) * len(every)
    all_passes = forward_passes(paper_settings, len(every), len(paper_settings.prompts))
    print(f"paper: {all_paper:.0f} s and {all_passes:,.0f} passes for {len(every)} candidates")
    print(f"Spearman: median, least and greatest of {options.rounds} seeds\n")
    print(
        "| analysis | Spearman, 1 bit | 2 bits | 3 bits | seconds | paper's seconds / these | paper's passes / these |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, settings in analyses(seed=0).items():
        columns = [[row[place] for row in ranks[name]] for place in range(len(MEASURED_BITS))]
        cells = [f"{statistics.median(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in columns]
        spent = statistics.median(took[name])
        ratio = all_passes / forward_passes(settings, len(every))
        print(
            f"| {name} | " + " | ".join(cells) + f" | {spent:.1f} | {all_paper / spent:.0f} | {ratio:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
