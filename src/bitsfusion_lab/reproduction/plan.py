"""What tables will cost, before anything runs: training steps and images that are not there yet in the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitsfusion_lab.reproduction.settings import Settings
from bitsfusion_lab.reproduction.student import Student
from bitsfusion_lab.reproduction.table import Table

SECONDS_A_SAMPLE = 0.4 / 64
"""One sample of a training step of the embedded model, teacher included, on one core."""
SECONDS_AN_IMAGE = 0.15
"""Drawn in 50 PNDM steps with guidance, and scored, on one core."""


@dataclass(frozen=True)
class Plan:
    """How much there is to do, each arm counted once."""

    arms: int
    training_steps: int
    images: int
    hours: float


def plan(tables: Sequence[Table], settings: Settings) -> Plan:
    """What all `tables` together take, from nothing, on one core."""
    subjects = {row.subject.name: row.subject for table in tables for row in table.rows if row.subject is not None}
    students: dict[str, Student] = {}
    for subject in subjects.values():
        if isinstance(subject, Student):
            students[subject.name] = subject
            students.setdefault(subject.first_stage.name, subject.first_stage)
    steps = sum(_steps(student, settings) for student in students.values()) * len(settings.seeds)
    sets = 1 + sum(len(settings.seeds) if subject.trained else 1 for subject in subjects.values())
    images = sets * 6 * settings.per_task * len(settings.guidance)
    seconds = steps * settings.train_batch_size * SECONDS_A_SAMPLE
    seconds += images * SECONDS_AN_IMAGE * settings.sampler_steps / 50
    return Plan(len(subjects), steps, images, round(seconds / 3600, 2))


def _steps(student: Student, settings: Settings) -> int:
    if student.fine_tuned:
        return settings.fine_tuning_steps
    return settings.steps + (settings.fine_tuning_steps if student.joined else 0)
