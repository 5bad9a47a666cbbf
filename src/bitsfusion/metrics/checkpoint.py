"""A metric's model from a folder or the hub: all its weights and processors, or one line that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from bitsfusion.errors import InputError, reason


def load_checkpoint(
    source: str | PathLike[str], model: Any, *processors: Any, what: str, wanted: str, unused: str | None = None
) -> tuple[Any, ...]:
    """`model` and `processors` (classes of transformers) from `source`, each by its own `from_pretrained`.

    transformers fills up what a checkpoint lacks at random and only warns, and builds a tokenizer without words:
    a score by either would be a number all the same.

    Args:
        what, wanted: of the error's line: whose model, and what it should be.
        unused: weights whose names start so may be missing; what uses the model does not read them.

    Raises:
        InputError: `source` holds no such model, one with other weights, or no tokenizer or image processor.
    """
    where = f"{what}: got {source}, wanted {wanted}"
    with _refused(where):
        loaded, report = model.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True)
    missing = sorted(name for name in report["missing_keys"] if unused is None or not name.startswith(unused))
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise InputError(f"{where} (no weight {missing[0]}{more})")
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise InputError(f"{where} (weight {name} is {list(found)}, not {list(expected)})")
    with _refused(where):
        parts = [processor.from_pretrained(source) for processor in processors]
    for part in parts:
        if isinstance(part, PreTrainedTokenizerBase) and len(part) <= len(part.all_special_ids):
            raise InputError(f"{where} (its tokenizer has no words)")
    return loaded, *parts


@contextmanager
def _refused(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a broken file is an error of transformers, safetensors, huggingface_hub or Python
        raise InputError(f"{where} ({reason(error)})") from error
