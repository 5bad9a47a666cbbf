"""Captioned images in a Hugging Face dataset: a hub id, a folder or file of parquet or arrow, or a saved dataset."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitsfusion.data.records import BadSampleError, Record
from bitsfusion.errors import InputError, reason
from bitsfusion.io.hashes import sha256_json

_PART = 512
_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv"}


class HfDataset:
    """One split of a dataset, in its own order; see `ImageSource`.

    Args:
        name: a hub id, a folder that `datasets.load_dataset` reads, one written by `save_to_disk`, or a file
            (parquet, arrow, json, csv).
        config: the dataset's configuration, if it has several.
        revision: of the hub's dataset.
        split: as `load_dataset` takes it, slices included unless streaming.
        image_column: of images, or of the bytes of image files.
        caption_column: of texts or lists of texts.
        streaming: read without making a local copy first.

    Raises:
        InputError: no such dataset, split or column, or `datasets` is not installed.
    """

    def __init__(
        self,
        name: str,
        *,
        config: str | None = None,
        revision: str | None = None,
        split: str = "train",
        image_column: str = "image",
        caption_column: str = "text",
        streaming: bool = False,
    ) -> None:
        datasets = _datasets()
        self.title = f"{name} ({split})"
        self._split, self._image, self._caption = split, image_column, caption_column
        state: Any
        try:
            if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
                data, state = _saved(datasets, name, split, streaming)
            else:
                data, state = _loaded(datasets, name, config, revision, split, streaming)
        except InputError:
            raise
        except Exception as error:  # the library raises nearly anything on what it cannot load
            raise InputError(f"{self.title}: could not be loaded as a dataset: {reason(error)}") from None
        columns = list(data.features or next(iter(data), {}))
        for column in (image_column, caption_column):
            if column not in columns:
                raise InputError(f"{self.title}: got columns {', '.join(columns)}, wanted one named {column!r}")
        data = data.select_columns([image_column, caption_column])
        features: dict[str, Any] = data.features or {}
        if isinstance(features.get(image_column), datasets.Image):
            data = data.cast_column(image_column, datasets.Image(decode=False))
        self._data, self._streaming = data, streaming
        self.identity = sha256_json(["hf_dataset", state, split, image_column, caption_column, streaming])
        self.records: int | None = None if streaming else len(data)
        if self.records == 0:
            raise InputError(f"{self.title}: holds no samples")
        self.parts = int(data.num_shards) if self.records is None else -(-self.records // _PART)

    def read(self, part: int, start: int) -> Iterator[Record]:
        """The records of a part, from its `start`-th on: 512 rows of a dataset, or one of a stream's files."""
        if self._streaming:
            rows = self._data.shard(num_shards=self.parts, index=part)
            for number, row in enumerate(itertools.islice(rows, start, None), start):
                yield Record(f"{self._split}/{part}[{number}]", functools.partial(self._content, row))
            return
        for index in range(part * _PART + start, min((part + 1) * _PART, len(self._data))):
            yield Record(f"{self._split}[{index}]", functools.partial(self._row, index))

    def _row(self, index: int) -> tuple[Any, Any]:
        return self._content(self._data[index])

    def _content(self, row: dict[str, Any]) -> tuple[Any, Any]:
        image, caption = row[self._image], row[self._caption]
        if isinstance(image, dict):
            content, path = image.get("bytes"), image.get("path")
            image = _fetch(path) if content is None and path is not None else content
        if image is None:
            raise BadSampleError("no image")
        return image, caption


def _loaded(
    datasets: Any, name: str, config: str | None, revision: str | None, split: str, streaming: bool
) -> tuple[Any, Any]:
    """A dataset read by its builder, and what tells its state: the builder's hash and its files' tags."""
    builder_name, files = name, None
    if Path(name).is_file():
        suffix = Path(name).suffix.lower()
        if suffix not in _BUILDERS:
            raise InputError(f"{name}: got a {suffix} file, wanted one of {', '.join(_BUILDERS)}")
        builder_name, files = _BUILDERS[suffix], name
    with _quiet(datasets):
        builder = datasets.load_dataset_builder(builder_name, config, data_files=files, revision=revision)
        options = {"data_files": files, "revision": revision, "split": split, "streaming": streaming}
        data = datasets.load_dataset(builder_name, config, **options)
    tags = {
        key: [str(tag) for tag in (getattr(value, "origin_metadata", None) or ())]
        for key, value in (builder.config.data_files or {}).items()
    }
    return data, [name if files is None else str(Path(name).resolve()), config, builder.hash, tags]


def _saved(datasets: Any, name: str, split: str, streaming: bool) -> tuple[Any, Any]:
    """A dataset written by save_to_disk, and its files' sizes and times of change."""
    data = datasets.load_from_disk(name)
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise InputError(f"{name}: got splits {', '.join(map(str, data))}, wanted {split!r}")
        data = data[split]
    status = [(path.relative_to(name).as_posix(), path.stat()) for path in sorted(Path(name).rglob("*.*"))]
    state = [str(Path(name).resolve()), [[path, one.st_size, one.st_mtime_ns] for path, one in status]]
    return (data.to_iterable_dataset() if streaming else data), state


def _fetch(path: str) -> bytes:
    """The bytes of an image that a dataset only refers to."""
    import fsspec  # a dependency of datasets

    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read()
    except (OSError, ValueError) as error:
        raise BadSampleError(f"image cannot be read: {error}") from None
    return content


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Inside, the library's own progress bars are off."""
    shown = datasets.utils.are_progress_bars_disabled
    if shown():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError("kind hf_dataset: datasets is not installed, wanted `pip install datasets`") from None
    return datasets
