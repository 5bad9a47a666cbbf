"""How fast captioned images are read, decoded and resized, encoded, and served from the cache.

    python benchmarks/data.py MODEL [--images 512] [--width 1024] [--height 768] [--resolution 512] [--encoded 4]

MODEL is a pipeline folder whose VAE, tokenizer and text encoder are used. JPEGs of smoothed noise are written once and
read as an imagefolder, as WebDataset shards and as streamed parquet. The cached path serves random batches of 32 from
chunks whose latents are random numbers: the VAE has no part in that. Medians of three rounds.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageFilter

from bitsfusion.data.batches import Batch
from bitsfusion.data.cached import CachedData
from bitsfusion.data.encoder import Encoder
from bitsfusion.data.hf_dataset import HfDataset
from bitsfusion.data.image_folder import ImageFolder
from bitsfusion.data.latent_cache import LatentCache
from bitsfusion.data.pixels import decode_image
from bitsfusion.data.records import ImageSource, Record
from bitsfusion.data.tar_shards import TarShards
from bitsfusion.diffusion.conditioning import conditioner_of
from bitsfusion.pipelines.load import load_pipeline


def write_images(folder: Path, count: int, size: tuple[int, int]) -> dict[str, ImageSource]:
    """The same JPEGs behind every kind of source."""
    rng, files = np.random.default_rng(0), []
    for _ in range(min(count, 16)):
        noise = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
        picture = noise.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.DETAIL)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    files = list(itertools.islice(itertools.cycle(files), count))
    texts = [f"a photograph of {index} things beside other things" for index in range(count)]
    (folder / "images").mkdir()
    for index, content in enumerate(files):
        (folder / "images" / f"{index}.jpg").write_bytes(content)
    lines = [json.dumps({"file_name": f"{index}.jpg", "text": text}) for index, text in enumerate(texts)]
    (folder / "images" / "metadata.jsonl").write_text("\n".join(lines))
    with tarfile.open(folder / "0.tar", "w") as tar:
        for index, (content, text) in enumerate(zip(files, texts, strict=True)):
            for name, value in ((f"{index}.jpg", content), (f"{index}.txt", text.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"image": files, "text": texts}).to_parquet(folder / "0.parquet")
    print(f"{count} JPEGs of {size[0]} x {size[1]}, {sum(map(len, files)) / count / 1e3:.0f} KB each")
    return {
        "imagefolder": ImageFolder(folder / "images"),
        "webdataset": TarShards(str(folder / "0.tar")),
        "hf_dataset": HfDataset(str(folder / "0.parquet"), streaming=True),
    }


def rate(work: Callable[[], int], rounds: int = 3) -> float:
    """Items a second, the median of some rounds."""
    rates = []
    for _ in range(rounds):
        began = time.perf_counter()
        rates.append(work() / (time.perf_counter() - began))
    return statistics.median(rates)


def decoded(source: ImageSource, resolution: int, threads: int) -> int:
    """Reads and decodes a whole source."""

    def one(record: Record) -> None:
        decode_image(record.load()[0], resolution)

    with ThreadPoolExecutor(threads) as pool:
        return sum(1 for part in range(source.parts) for _ in pool.map(one, source.read(part, 0)))


def filled_cache(folder: Path, encoder: Encoder, shape: tuple[int, ...], chunks: int) -> CachedData:
    """A cache of random latents in its usual chunks of 512."""
    cache = LatentCache(folder, {"random": True})
    for number in range(chunks):
        names = tuple(f"{number}/{row}.jpg" for row in range(512))
        rows = encoder.conditioner.rows(["a photograph of things"])
        prompts = {name: row.expand(512, *row.shape[1:]) for name, row in rows.items()}
        samples = Batch(torch.randn((512, *shape)).half(), prompts, names)
        cache.write(0, samples, bad=[], cut=0, content=str(number), last=number == chunks - 1)
    return CachedData(cache.chunks(0), {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=768)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--encoded", type=int, default=4, help="images through the VAE")
    parser.add_argument("--chunks", type=int, default=40, help="of 512 samples, in the random cache")
    chosen = parser.parse_args()
    pipeline = load_pipeline(chosen.model)
    encoder = Encoder(pipeline.vae, conditioner_of(pipeline), chosen.resolution, "float16")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = write_images(folder, chosen.images, (chosen.width, chosen.height))
        for kind, source in sources.items():
            for threads in (1, 2):
                speed = rate(lambda s=source, t=threads: decoded(s, chosen.resolution, t))  # type: ignore[misc]
                print(f"{kind:<12} read, decoded, resized, {threads} threads: {speed:8.1f} images/s")
        pixels = [torch.zeros(3, chosen.resolution, chosen.resolution, dtype=torch.uint8)] * chosen.encoded
        latents = encoder.latents(pixels[:1])
        speed = rate(lambda: len(encoder.latents(pixels)), 1)
        print(f"encoded by the VAE, {torch.get_num_threads()} threads: {speed:8.2f} images/s")
        data = filled_cache(folder / "cache", encoder, tuple(latents.shape[1:]), chosen.chunks)
        size = sum(path.stat().st_size for path in (folder / "cache").rglob("*.safetensors")) / data.count
        steps = iter(range(10**6))
        speed = rate(lambda: sum(len(data.batch(next(steps), 0, 1, 32).names) for _ in range(50)))
        print(f"cached, random batches of 32 of {data.count}: {speed:8.0f} samples/s, {size / 1e3:.1f} KB a sample")
        began = time.perf_counter()
        LatentCache(folder / "cache", {"random": True}).chunks(0)
        print(f"opening a cache of {data.count} samples: {time.perf_counter() - began:.3f} s")
        ids, encode = data.batch(0, 0, 1, 1).prompts["input_ids"], pipeline.text_encoder
        with torch.no_grad():
            encode(ids)
            print(f"text encoder: {1 / rate(lambda: len(encode(ids)[0])):.3f} s a caption")
            unet, states = pipeline.unet, encode(ids)[0]
            began = time.perf_counter()
            unet(torch.randn_like(latents, dtype=torch.float32), 1, states)
            print(f"UNet forward: {time.perf_counter() - began:.3f} s a sample")


if __name__ == "__main__":
    main()
