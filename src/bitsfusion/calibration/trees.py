"""The arguments and results of modules: tensors in tuples, lists and mappings, and how they are kept without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, Union

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bitsfusion.errors import InputError
from bitsfusion.io.atomic import atomic_path

Tree: TypeAlias = Union[
    Tensor, bool, int, float, str, torch.dtype, "tuple[Tree, ...]", "list[Tree]", Mapping[str, "Tree"], None
]
"""What a module takes or gives."""

_PLAIN = (type(None), bool, int, float, str, torch.dtype)


def map_tensors(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    """The same tree with every tensor changed; mappings become dicts, named results (diffusers' outputs) keep a type.

    Raises:
        InputError: a value of a type that no module of diffusers takes.
    """
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, _PLAIN):
        return tree
    if isinstance(tree, (tuple, list)):
        items = [map_tensors(item, change) for item in tree]
        return items if isinstance(tree, list) else tuple(items)
    if isinstance(tree, Mapping):
        made = {key: map_tensors(item, change) for key, item in tree.items()}
        return made if type(tree) is dict else type(tree)(**made)
    raise InputError(f"calibration: got an argument of type {type(tree).__name__}, wanted tensors and plain values")


def tensors_of(tree: Tree) -> list[Tensor]:
    """Every tensor, in the order of `map_tensors`."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(tree, keep)
    return found


def save_tree(path: Path, tree: Tree) -> None:
    """Writes a tree to a safetensors file, whole or not at all; its form is JSON in the metadata."""
    tensors = tensors_of(tree)
    named = {str(index): _least(tensor).detach().cpu().contiguous().clone() for index, tensor in enumerate(tensors)}
    with atomic_path(path) as temporary:
        save_file(named, temporary, {"form": json.dumps(_form(tree, iter(range(len(tensors)))))})


def load_tree(path: Path, device: torch.device) -> Tree:
    """What `save_tree` wrote; named results come back as dicts of their fields."""
    with safe_open(path, framework="pt") as file:
        form = json.loads(file.metadata()["form"])
        return _tree(form, lambda index, shape: file.get_tensor(str(index)).to(device).expand(shape))


def is_spread(tensor: Tensor) -> bool:
    """Whether it is one value all over, without memory for more."""
    return tensor.numel() > 1 and not any(tensor.stride())


def _least(tensor: Tensor) -> Tensor:
    return tensor[(slice(0, 1),) * tensor.dim()] if is_spread(tensor) else tensor


def _form(tree: Tree, counter: Iterator[int]) -> Any:
    """JSON: {"tensor": [index, *shape]}, {"dtype": name}, {"plain": value}, or {"tuple" (list, dict): items}."""
    if isinstance(tree, Tensor):
        return {"tensor": [next(counter), *tree.shape]}
    if isinstance(tree, torch.dtype):
        return {"dtype": str(tree).removeprefix("torch.")}
    if isinstance(tree, _PLAIN):
        return {"plain": tree}
    if isinstance(tree, (tuple, list)):
        return {"list" if isinstance(tree, list) else "tuple": [_form(item, counter) for item in tree]}
    return {"dict": {key: _form(item, counter) for key, item in tree.items()}}


def _tree(form: dict[str, Any], tensor: Callable[[int, list[int]], Tensor]) -> Tree:
    ((kind, value),) = form.items()
    if kind == "tensor":
        return tensor(value[0], value[1:])
    if kind == "dtype":
        named: torch.dtype = getattr(torch, value)
        return named
    if kind == "plain":
        plain: Tree = value
        return plain
    if kind == "dict":
        return {key: _tree(item, tensor) for key, item in value.items()}
    items = [_tree(item, tensor) for item in value]
    return items if kind == "list" else tuple(items)
