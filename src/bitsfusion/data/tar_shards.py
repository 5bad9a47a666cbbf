"""Captioned images in WebDataset shards: tar files in which a sample's files share a name up to the first dot."""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bitsfusion.data.records import BadSampleError, Record
from bitsfusion.errors import InputError
from bitsfusion.io.hashes import sha256_json

IMAGE_KEYS = ("jpg", "png", "jpeg", "webp")
CAPTION_KEYS = ("txt", "text", "caption")
_REMOTE = re.compile(r"[a-z0-9]+:")


class TarShards:
    """Shards read by the webdataset library, one part each, in the order given and without shuffling.

    Only the library's opening, naming and grouping of files are used: its own splitting over processes follows the
    environment, its shuffling cannot resume.

    Args:
        urls: paths or addresses that webdataset opens (https:, s3:, gs:, pipe: and so on), with brace expansion:
            "data/{00000..00099}.tar".

    Raises:
        InputError: a local shard is missing, or there are none at all; while reading, a shard is cut or not a tar file.
    """

    records = None

    def __init__(self, urls: str | Sequence[str]) -> None:
        shards = _webdataset().shardlists.expand_urls
        self._urls: list[str] = [url for one in ([urls] if isinstance(urls, str) else urls) for url in shards(str(one))]
        if not self._urls:
            raise InputError("train_shards_path_or_url: got none, wanted tar files")
        for url in self._urls:
            if not _REMOTE.match(url) and not Path(url).is_file():
                raise InputError(f"{url}: no such file, wanted a tar file of images and captions")
        self.parts = len(self._urls)
        self.title = self._urls[0] + (f" and {self.parts - 1} more" if self.parts > 1 else "")

    @property
    def identity(self) -> str:
        """A hash of addresses and of local files' sizes and times of change; it misses a remote file that changes."""
        states: list[list[Any]] = []
        for url in self._urls:
            if _REMOTE.match(url):
                states.append([url])
            else:
                status = Path(url).stat()
                states.append([str(Path(url).resolve()), status.st_size, status.st_mtime_ns])
        return sha256_json(["webdataset", states])

    def read(self, part: int, start: int) -> Iterator[Record]:
        """The records of a shard, from its `start`-th on; earlier ones are skipped, not decoded."""
        url = self._urls[part]
        wanted = {*IMAGE_KEYS, *CAPTION_KEYS}
        iterators = _webdataset().tariterators
        samples = iterators.tarfile_samples(
            [{"url": url}], select_files=lambda name: name.rsplit(".", 1)[-1].lower() in wanted
        )
        try:
            for sample in itertools.islice(samples, start, None):
                name = f"{url.rsplit('/', 1)[-1]}:{sample['__key__']}"
                yield Record(name, _Loaded(_first(sample, IMAGE_KEYS), _first(sample, CAPTION_KEYS)))
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            reason = str(error.args[0] if error.args else error).splitlines()[0].split(" @ ")[0]
            raise InputError(f"{url}: wanted a whole tar file of images and captions, got {reason}") from None


class _Loaded:
    """Returns the pair that was read with the shard."""

    def __init__(self, image: bytes | None, caption: bytes | None) -> None:
        self._image, self._caption = image, caption

    def __call__(self) -> tuple[Any, Any]:
        if self._image is None:
            raise BadSampleError(f"no image, wanted one of {', '.join(IMAGE_KEYS)}")
        return self._image, self._caption


def _first(sample: dict[str, Any], keys: Sequence[str]) -> bytes | None:
    return next((sample[key] for key in keys if key in sample), None)


def _webdataset() -> Any:
    try:
        import webdataset.shardlists
        import webdataset.tariterators
    except ImportError:
        raise InputError("kind webdataset: webdataset is not installed, wanted `pip install webdataset`") from None
    return webdataset
