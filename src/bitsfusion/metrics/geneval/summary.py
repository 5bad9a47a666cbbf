"""GenEval's score (section 7): the share of images that show what was asked, by task and overall."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bitsfusion.errors import InputError
from bitsfusion.metrics.geneval.prompts import TASKS
from bitsfusion.metrics.intervals import bootstrap_mean_interval, wilson_interval


@dataclass(frozen=True)
class GenEvalResult:
    """One image: the task (tag) of its prompt, and whether it shows what the prompt asks for.

    Fields:
        group: images that are no independent evidence have the same one, such as those of one prompt and image seed by
            several trainings of a model; None: an image by itself.
    """

    tag: str
    correct: bool
    group: int | None = None


@dataclass(frozen=True)
class TaskScore:
    """A task's share of correct images with its Wilson interval, in which a group of images is one trial."""

    correct: int
    images: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class GenEvalSummary:
    """The mean of the tasks' accuracies with a bootstrap interval, and each task's score."""

    overall: float
    low: float
    high: float
    tasks: dict[str, TaskScore]

    def scores(self) -> dict[str, object]:
        """The numbers as `summary.json` holds them: {overall, tasks: {task: accuracy}}."""
        return {"overall": self.overall, "tasks": {tag: score.accuracy for tag, score in self.tasks.items()}}


def geneval_summary(
    results: Iterable[GenEvalResult], resamples: int = 2000, tasks: Sequence[str] = TASKS
) -> GenEvalSummary:
    """GenEval's numbers from the results of its images, every task counting the same however many images it has.

    The overall interval resamples within each task, images of a group together (`bootstrap_mean_interval`). It takes
    groups, and images without one, as independent: where each prompt has one, it speaks of new prompts.

    Args:
        tasks: those that count; a drawn world may have more than GenEval's six.

    Raises:
        InputError: a result has an unknown task, or a task has no image.
    """
    groups: dict[str, dict[object, list[bool]]] = {tag: {} for tag in tasks}
    for place, result in enumerate(results):
        if result.tag not in groups:
            raise InputError(f"GenEval: got task {result.tag!r}, wanted one of {', '.join(tasks)}")
        key = (place, None) if result.group is None else result.group
        groups[result.tag].setdefault(key, []).append(result.correct)
    missing = [tag for tag, found in groups.items() if not found]
    if missing:
        raise InputError(f"GenEval: got no image for {', '.join(missing)}, wanted some for each of {len(groups)} tasks")
    scored = {tag: _task_score(list(found.values())) for tag, found in groups.items()}
    shares = [(tag, float(np.mean(group))) for tag, found in groups.items() for group in found.values()]
    interval = bootstrap_mean_interval([share for _, share in shares], [tag for tag, _ in shares], resamples=resamples)
    return GenEvalSummary(float(np.mean([score.accuracy for score in scored.values()])), *interval, scored)


def _task_score(groups: Sequence[Sequence[bool]]) -> TaskScore:
    correct, images = sum(map(sum, groups)), sum(map(len, groups))
    interval = wilson_interval(correct * len(groups) / images, len(groups))
    return TaskScore(correct, images, correct / images, *interval)
