"""The prompts that models are scored on, each with its seed."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitsfusion.embedded.world import Prompt, Split, World
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_json
from bitsfusion.io.pictures import PromptedPicture, is_tree, read_pictures
from bitsfusion.io.texts import read_lines


@dataclass(frozen=True)
class PromptSet:
    """Prompts and one seed each; those of a drawn world hold it, and what each of them asks for."""

    texts: tuple[str, ...]
    seeds: tuple[int, ...]
    asked: tuple[Prompt, ...] = ()
    world: World | None = None

    @property
    def sha256(self) -> str:
        """A hash of the texts and seeds."""
        return sha256_json([self.texts, self.seeds])

    def check(self, images: npt.NDArray[np.uint8], where: slice = slice(None)) -> list[bool] | None:
        """Whether each of `images` ([n, 64, 64, 3] uint8) shows exactly what its prompt asks for; None without a world.

        Args:
            where: the images' places among the prompts.
        """
        if self.world is None:
            return None
        return [self.world.shows(image, prompt) for prompt, image in zip(self.asked[where], images, strict=True)]

    def repeated(self, times: int) -> PromptSet:
        """Every prompt `times` times, side by side; image i has the first seed + i."""
        several = self.chosen([place for place in range(len(self.texts)) for _ in range(times)])
        return replace(several, seeds=tuple(range(self.seeds[0], self.seeds[0] + len(several.texts))))

    def chosen(self, places: Sequence[int]) -> PromptSet:
        """The prompts at `places`, in that order."""
        texts, seeds = tuple(self.texts[i] for i in places), tuple(self.seeds[i] for i in places)
        return PromptSet(texts, seeds, tuple(self.asked[i] for i in places if self.asked), self.world)

    def first_of_each(self, per_task: int) -> list[int]:
        """The places of the first `per_task` of each task, or the first 6 x `per_task` where there are no tasks."""
        if self.world is None:
            return list(range(min(len(self.texts), 6 * per_task)))
        tags = [prompt.tag for prompt in self.asked]
        return [place for place, tag in enumerate(tags) if tags[:place].count(tag) < per_task]


def world_prompts(world: World, split: Split, per_task: int, seed: int) -> PromptSet:
    """`per_task` prompts of each of a drawn world's tasks; image i has seed `seed` + i."""
    prompts = tuple(world.prompt_set(split, per_task))
    return PromptSet(tuple(p.text for p in prompts), tuple(range(seed, seed + len(prompts))), prompts, world)


def file_prompts(path: Path, seed: int) -> PromptSet:
    """One prompt a line of a .txt file, the "prompt" of each line of a .jsonl file (GenEval's form), the column
    "Prompt" of a .tsv file (PartiPrompts' form), or the "caption" of each entry of a .json file (TIFA's form).

    Raises:
        InputError: there is no such file, a line has no prompt, or there is none at all.
    """
    lines = [line for line in read_lines(path, "a file of prompts") if line.strip()]
    if Path(path).suffix == ".jsonl":
        try:
            texts = tuple(_text(json.loads(line)["prompt"]) for line in lines)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f'{path}: wanted {{"prompt": ...}} on every line, got {error!r}') from None
    elif Path(path).suffix == ".tsv":
        cells = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        if any(not row.get("Prompt") for row in cells):
            raise InputError(f"{path}: wanted a column Prompt with a prompt on every line, got {lines[0]!r}")
        texts = tuple(row["Prompt"].strip() for row in cells)
    elif Path(path).suffix == ".json":
        try:
            texts = tuple(_text(entry["caption"]) for entry in json.loads("\n".join(lines)))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f'{path}: wanted a list of {{"caption": ...}}, got {error!r}') from None
    else:
        texts = tuple(line.strip() for line in lines)
    if not texts:
        raise InputError(f"{path}: got no prompts, wanted one a line")
    return PromptSet(texts, tuple(range(seed, seed + len(texts))))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{value!r} for a text")
    return value


def picture_prompts(folder: Path, seed: int, images_per_prompt: int = 1) -> tuple[PromptSet, int]:
    """The prompts of a folder of pictures in its order, one entry a picture, and how many pictures each prompt has.

    Those of a prompt are put beside each other; in GenEval's tree a folder is a prompt. Elsewhere, where prompts have
    different numbers of pictures, each picture is taken as a prompt of its own.

    Args:
        seed: of the first picture where the metadata has not one for each; the next ones count on.
        images_per_prompt: above 1, what has to be there.

    Raises:
        InputError: there is no picture, or a prompt has another number of them.
    """
    tree = is_tree(folder)
    prompts: dict[str, list[PromptedPicture]] = {}
    for picture in read_pictures(folder):
        prompts.setdefault(picture.where if tree else picture.prompt, []).append(picture)
    each = max(map(len, prompts.values()), default=0)
    fewer = next((pictures for pictures in prompts.values() if len(pictures) != each), None)
    if fewer is not None and tree:
        got = f"{len(fewer)} pictures of {fewer[0].prompt[:60]!r}"
        raise InputError(f"{folder}: got {got}, wanted {each} as of other prompts: the same number of each")
    if fewer is not None:
        each, prompts = 1, {picture.where: [picture] for picture in read_pictures(folder)}
    if each == 0 or images_per_prompt not in (1, each):
        raise InputError(f"{folder}: got {each} pictures of each prompt, wanted {max(images_per_prompt, 1)}")
    pictures = [picture for of_prompt in prompts.values() for picture in of_prompt]
    recorded = [picture.metadata.get("seed") for picture in pictures]
    seeds = tuple(one for one in recorded if type(one) is int and one >= 0)
    if len(seeds) < len(pictures):
        seeds = tuple(range(seed, seed + len(pictures)))
    return PromptSet(tuple(picture.prompt for picture in pictures), seeds), each
