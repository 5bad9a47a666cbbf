"""Ways to break a packed folder, each a pure function of a random generator and the whole thing.

The format's own parts are known here, so that most of them get past the outer checks: frames are re-encoded, headers
and configs are changed in one place and written out again.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import zstandard

from bitsfusion.artifact.schema import PackedEntry
from bitsfusion.io.hashes import sha256_json

MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE = b"\x50\x2a\x4d\x18"
NUMBERS: list[Any] = [0, 1, -1, 2, 3, 4, 5, 8, 9, 255, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1]
NUMBERS += [1 << 63, 1 << 64, 10**400, 0.5, 1.0, -0.0, 1e308, float("nan"), float("inf"), float("-inf")]
TEXTS = [
    "",
    "x",
    "U8",
    "F64",
    "F32",
    "conv_in",
    "../../x",
    "/etc/passwd",
    "a/../../b",
    "a\nb",
    "\x1b[31m",
    "\ud800",
    "9" * 5000,
]
NESTED: Any = None
for _ in range(60):
    NESTED = [NESTED]
VALUES: list[Any] = [None, True, False, [], {}, [[]], [1], [1, 2], {"a": 1}, NESTED, *TEXTS, *NUMBERS]


def value(rng: random.Random) -> Any:
    """Something that JSON can hold and a field should not."""
    return copy.deepcopy(rng.choice(VALUES))


def frame(content: bytes, rng: random.Random, declared: int | None = None) -> bytes:
    """A zstd frame made by hand, of raw and run-length blocks: header fields as no compressor would set them."""
    declared = len(content) if declared is None else declared
    size_flag = rng.choice([2, 3])
    dictionary = rng.choice([0, 0, 0, 1])
    checksum = rng.choice([0, 0, 0, 1])
    descriptor = size_flag << 6 | checksum << 2 | dictionary
    window = bytes([rng.choice([0, 8, 80, 104, 112, 136, 168, 248, rng.randrange(256)])])
    header = MAGIC + bytes([descriptor]) + window + b"\x07" * dictionary
    header += (declared & (1 << 8 * (4 if size_flag == 2 else 8)) - 1).to_bytes(4 if size_flag == 2 else 8, "little")
    blocks, place = b"", 0
    while True:
        part = content[place : place + rng.randrange(1, 1 << 12)]
        place += len(part)
        last = int(place >= len(content))
        if part and len(set(part)) == 1:
            blocks += (len(part) << 3 | 1 << 1 | last).to_bytes(3, "little") + part[:1]
        else:
            blocks += (len(part) << 3 | last).to_bytes(3, "little") + part
        if last:
            return header + blocks + bytes(rng.randrange(256) for _ in range(4 * checksum))


def compressed(content: bytes, rng: random.Random) -> bytes:
    """A frame of `content` as some compressor writes it; most are good ones."""
    made = zstandard.ZstdCompressor(
        level=rng.choice([1, 3, 12, 22]),
        write_content_size=rng.random() < 0.9,
        write_checksum=rng.random() < 0.2,
        dict_data=zstandard.ZstdCompressionDict(bytes(range(64)) * 4) if rng.random() < 0.05 else None,
    ).compress(content)
    return made


def mangled(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """Bytes flipped, set, cut, added, zeroed, copied about or taken from elsewhere."""
    made = bytearray(data)
    place = rng.randrange(len(made)) if made else 0
    length = min(rng.choice([1, 2, 4, 8, 64, 1024]), len(made) - place)
    kind = rng.randrange(8)
    if kind <= 2 or not made:
        for _ in range(rng.choice([1, 1, 2, 8])):
            if made:
                made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        made[place] = rng.choice([0, 1, 127, 128, 242, 243, 254, 255])
    elif kind == 4:
        del made[place : rng.choice([place + length, len(made)])]
    elif kind == 5:
        made[place:place] = bytes(rng.randrange(256) for _ in range(length))
    elif kind == 6:
        made[place : place + length] = bytes(length)
    else:
        source = other or data
        start = rng.randrange(len(source))
        made[place : place + length] = source[start : start + length]
    return bytes(made)


def payload(data: bytes, entry: PackedEntry, other: bytes, rng: random.Random) -> bytes:
    """One layer on disk, broken; `other` is another layer's."""
    end = 4 + int.from_bytes(data[:4], "little")
    planes, radix = zstandard.decompress(data[4:end]), zstandard.decompress(data[end:])
    first, second = data[4:end], data[end:]
    kind = rng.randrange(14)
    if kind == 0:
        return mangled(data, rng, other)
    if kind == 1:
        return struct.pack("<I", rng.choice([0, 1, 3, end, end - 4, len(data), 1 << 31, 0xFFFFFFFF])) + data[4:]
    if kind == 2:
        first = compressed(mangled(planes, rng), rng)
    elif kind == 3:
        second = compressed(mangled(radix, rng), rng)
    elif kind == 4:
        scale = rng.choice([b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80"])
        changed, out = bytearray(planes), len(planes) // 4
        for index, byte in enumerate(scale):
            changed[index * out + rng.randrange(out) * (rng.random() < 0.1)] = byte
        first = compressed(bytes(changed), rng)
    elif kind == 5:
        changed = bytearray(radix)
        for _ in range(rng.choice([1, 3])):
            changed[rng.choice([-1, rng.randrange(len(changed))])] = rng.choice([0, 80, 81, 124, 125, 242, 243, 255])
        second = compressed(bytes(changed), rng)
    elif kind == 6:
        size = rng.choice([0, 1, len(radix) - 1, len(radix) + 1, 2 * len(radix), 1 << 22])
        second = compressed(bytes(size), rng)
    elif kind == 7:  # a bomb, by what it declares, by what it holds, or both
        declared = rng.choice([None, 0, 1, len(radix), 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 64) - 1])
        second = frame(rng.choice([radix, bytes(1 << 20), b""]), rng, declared)
    elif kind == 8:
        first, second = frame(planes, rng), frame(radix, rng)
    elif kind == 9:
        skippable = (
            SKIPPABLE
            + struct.pack("<I", rng.choice([0, 4, len(radix), 1 << 31]))
            + bytes(rng.choice([0, 4, len(radix)]))
        )
        second = rng.choice([skippable, skippable + second, second + skippable])
    elif kind == 10:
        first, second = rng.choice(
            [(second, first), (first, second + second), (first + first, second), (b"", second), (first, b"")]
        )
    elif kind == 11:
        cut = 4 + int.from_bytes(other[:4], "little")
        first, second = rng.choice([(other[4:cut], second), (first, other[cut:]), (other[4:cut], other[cut:])])
    elif kind == 12:
        first = mangled(first, rng)
    else:
        second = mangled(second, rng, other)
    return struct.pack("<I", len(first)) + first + second


def header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header is changed in one or two places and fits its length again, mostly."""
    length = int.from_bytes(data[:8], "little")
    entries, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    text: str | None = None
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(list(entries))
        entry = entries[name]
        kind = rng.randrange(9)
        if kind <= 3 and isinstance(entry, dict) and entry:
            key = rng.choice(list(entry))
            if kind == 0 or not isinstance(entry[key], list) or not entry[key]:
                entry[key] = value(rng)
            elif kind == 1:
                entry[key][rng.randrange(len(entry[key]))] = rng.choice(NUMBERS)
            elif kind == 2:
                index = rng.randrange(len(entry[key]))
                if isinstance(entry[key][index], int):
                    entry[key][index] += rng.choice([-8, -1, 1, 8])
            else:
                entry[key] = rng.choice(list(entries.values())).get(key)
        elif kind == 4:
            entries[rng.choice([*TEXTS, name + ".packed", name.upper(), "__metadata__"])] = entries.pop(name)
        elif kind == 5:
            del entries[name]
        elif kind == 6:
            entries[rng.choice([*TEXTS, "conv_in.weight", "ghost.packed"])] = rng.choice([entry, value(rng)])
        elif kind == 7:
            text = json.dumps(entries)
            text = text[:-1] + f", {json.dumps(name)}: {json.dumps(rng.choice([entry, value(rng)]))}}}"
        else:
            text = rng.choice(
                ["{}", "[]", "null", "{" * 5000, '{"a":' * 5000 + "1" + "}" * 5000, "[" * 100_000, "9" * 5000, " {}"]
            )
        if not entries:
            break
    made = (text if text is not None else json.dumps(entries)).encode()
    made += b" " * rng.choice([0, 0, 0, 7])
    sizes = [len(made)] * 40 + [0, len(made) - 1, len(made) + 1, 1 << 24, 1 << 40, (1 << 64) - 1]
    return struct.pack("<Q", rng.choice(sizes)) + made + rest


def paths(plain: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in plain JSON but the root."""
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    return [place for key, item in items for place in ((*path, key), *paths(item, (*path, key)))]


def config(data: bytes, rng: random.Random, within: tuple[str, ...] = ()) -> tuple[bytes, bool]:
    """A config.json, broken in one to three places; and whether its own hash was made to fit again, as a liar would.

    Args:
        within: only the part below these keys is changed.
    """
    values = json.loads(data)
    root = values
    for key in within:
        root = root[key]
    if not within and rng.random() < 0.1:
        return rng.choice(
            [
                lambda: mangled(data, rng),
                lambda: data[:-3] + b', "quantization_config": {}}',
                lambda: b'{"a":' * 20_000,
                lambda: b"[" * 200_000,
                lambda: data.replace(b"{", b"\xff{", 1),
                lambda: data.replace(b": 8,", b": NaN,", 1),
                lambda: json.dumps(value(rng)).encode(),
            ]
        )(), False
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = paths(root)
        if not places:
            break
        # Long lists of layers would take nearly all draws.
        depth = rng.randrange(1, 6)
        place = rng.choice([place for place in places if len(place) == depth] or places)
        owner: Any = root
        for key in place[:-1]:
            owner = owner[key]
        key, kind = place[-1], rng.randrange(6)
        if kind <= 1:
            owner[key] = value(rng)
        elif kind == 2:
            del owner[key]
        elif kind == 3 and isinstance(owner, dict):
            owner[rng.choice([*TEXTS, "self", "_note", "bits", "mid_block.resnets.0.conv1"])] = owner.pop(key)
        elif kind == 4 and type(owner[key]) is int:
            owner[key] += rng.choice([-1, 1, 1 << rng.randrange(40)])
        else:
            other: Any = root
            for part in rng.choice(places)[: rng.randrange(1, 6)]:
                if isinstance(other, (dict, list)) and (
                    part in other if isinstance(other, dict) else part < len(other)
                ):
                    other = other[part]
            owner[key] = json.loads(json.dumps(other))
    sealed = rng.random() < 0.5
    content = values.get("quantization_config")
    if sealed and isinstance(content, dict):
        apart = ("config_sha256", "provenance")
        content["config_sha256"] = sha256_json(
            {key: value for key, value in content.items() if key not in apart and not key.startswith("_")}
        )
    return json.dumps(values).encode(), sealed


def index(data: bytes, rng: random.Random) -> bytes:
    """An index of shards, broken."""
    values = json.loads(data)
    files = values["weight_map"]
    name, names = rng.choice(list(files)), sorted(set(files.values()))
    change: Callable[[], Any] = rng.choice(
        [
            lambda: files.update({name: value(rng)}),
            lambda: files.update(
                {name: rng.choice(["../" + names[0], "/" + names[0], "./" + names[0], names[0] + "/", ".."])}
            ),
            lambda: files.update({name: rng.choice(["missing.safetensors", "config.json", names[0].upper()])}),
            lambda: files.update({name: rng.choice(names)}),
            lambda: files.pop(name),
            lambda: files.update({rng.choice([*TEXTS, "ghost.packed", name + "x"]): rng.choice(names)}),
            lambda: values.update(weight_map=value(rng)),
            lambda: values.pop("weight_map"),
            lambda: values.update(extra=value(rng)),
        ]
    )
    change()
    made = json.dumps(values).encode()
    return mangled(made, rng) if rng.random() < 0.15 else made
