"""GenEval's score (section 7): the share of images that show what was asked, by task and overall."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bitsfusion.data.world.captions import TASKS
from bitsfusion.errors import InputError
from bitsfusion.metrics.intervals import quantile_interval, wilson_interval


@dataclass(frozen=True)
class GenEvalResult:
    """One image: the task (tag) of its prompt, and whether it shows what the prompt asks for."""

    tag: str
    correct: bool


@dataclass(frozen=True)
class TaskScore:
    """A task's share of correct images with its Wilson interval."""

    correct: int
    images: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class GenEvalSummary:
    """The mean of the six tasks' accuracies with a bootstrap interval, and each task's score."""

    overall: float
    low: float
    high: float
    tasks: dict[str, TaskScore]

    def scores(self) -> dict[str, object]:
        """The numbers as `summary.json` holds them: {overall, tasks: {task: accuracy}}."""
        return {"overall": self.overall, "tasks": {tag: score.accuracy for tag, score in self.tasks.items()}}


def geneval_summary(
    results: Iterable[GenEvalResult], confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> GenEvalSummary:
    """GenEval's numbers from the results of its images, every task counting the same however many images it has.

    The overall interval resamples the images within each task. It takes images as independent: it speaks of
    new seeds for these prompts, not of new prompts.

    Raises:
        InputError: a result has an unknown task, or a task has no image.
    """
    counts = {tag: [0, 0] for tag in TASKS}
    for result in results:
        if result.tag not in counts:
            raise InputError(f"GenEval: got task {result.tag!r}, wanted one of {', '.join(TASKS)}")
        counts[result.tag][0] += result.correct
        counts[result.tag][1] += 1
    missing = [tag for tag, (_, images) in counts.items() if images == 0]
    if missing:
        raise InputError(f"GenEval: got no image for {', '.join(missing)}, wanted some for each of the six tasks")
    tasks = {
        tag: TaskScore(correct, images, correct / images, *wilson_interval(correct, images, confidence))
        for tag, (correct, images) in counts.items()
    }
    rng = np.random.default_rng(seed)
    # Drawing n images with replacement from k correct ones of n is a binomial draw.
    shares = [rng.binomial(score.images, score.accuracy, resamples) / score.images for score in tasks.values()]
    resampled = np.mean(shares, axis=0)
    overall = float(np.mean([score.accuracy for score in tasks.values()]))
    return GenEvalSummary(overall, *quantile_interval(resampled, confidence), tasks)
