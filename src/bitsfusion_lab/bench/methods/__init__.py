"""The ways to hold a denoiser that `bitsfusion bench` can measure, by name."""

from __future__ import annotations

from bitsfusion.errors import InputError
from bitsfusion_lab.bench.bench_file import Dtype
from bitsfusion_lab.bench.methods.base import Method
from bitsfusion_lab.bench.methods.dense import Dense
from bitsfusion_lab.bench.methods.gguf import GGUF_TYPES, Gguf
from bitsfusion_lab.bench.methods.orbitquant import ORBITQUANT_BITS, OrbitQuant
from bitsfusion_lab.bench.methods.packed import Packed
from bitsfusion_lab.bench.methods.quanto import QUANTO_TYPES, Quanto
from bitsfusion_lab.bench.methods.sdnq import SDNQ_TYPES, Sdnq
from bitsfusion_lab.bench.methods.torchao import TorchAoInt4, TorchAoInt8

OURS = "bitsfusion"
DENSE = {Dense(dtype).name: dtype for dtype in Dtype}
_PEERS: tuple[Method, ...] = (
    *(Quanto(kind) for kind in QUANTO_TYPES),
    *(Sdnq(kind) for kind in SDNQ_TYPES),
    TorchAoInt4(),
    TorchAoInt8(),
    *(OrbitQuant(bits) for bits in ORBITQUANT_BITS),
    *(Gguf(kind) for kind in GGUF_TYPES),
)
PEERS = {method.name: method for method in _PEERS}


def method_called(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: there is none.
    """
    if name == OURS:
        return Packed()
    if name in DENSE:
        return Dense(DENSE[name])
    if name not in PEERS:
        raise InputError(f"peers: got {name!r}, wanted all, none, or some of {', '.join(PEERS)}")
    return PEERS[name]


def chosen_peers(text: str) -> list[str]:
    """Names of peers from `all` (those installed), `none`, or a list of names or libraries with commas between.

    Raises:
        InputError: an unknown name, or one whose library is not installed.
    """
    if text == "none":
        return []
    if text == "all":
        return [name for name, method in PEERS.items() if method.version() is not None]
    chosen: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        of_library = [name for name in PEERS if name.startswith(f"{part}-")]
        for name in of_library or [part]:
            method = method_called(name) if name in PEERS else None
            if method is None:
                raise InputError(f"peers: got {part!r}, wanted all, none, or some of {', '.join(PEERS)}")
            if method.version() is None:
                raise InputError(f"peers: got {name}, wanted its library installed: pip install 'bitsfusion[peers]'")
            chosen += [name] if name not in chosen else []
    return chosen
