"""The streamed file is the one that safetensors itself writes."""

from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsfusion.artifact.weight_file import write_weights

NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,8}(\.[A-Za-z0-9_-]{1,8}){0,3}", fullmatch=True)
SHAPES = st.lists(st.integers(1, 5), max_size=3)
DTYPES = st.sampled_from(
    [getattr(torch, name) for name in ["float32", "float16", "bfloat16", "uint8", "int8", "int64", "bool"]]
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(NAMES, st.tuples(SHAPES, DTYPES), max_size=12), st.randoms())
def test_the_same_bytes_as_safetensors(entries, random):
    tensors = {
        name: torch.randint(0, 255, [*shape], generator=torch.Generator().manual_seed(number)).to(dtype)
        for number, (name, (shape, dtype)) in enumerate(entries.items())
    }
    order = list(tensors.items())
    random.shuffle(order)
    with TemporaryDirectory() as folder:
        write_weights(Path(folder, "w.safetensors"), iter(order))
        assert Path(folder, "w.safetensors").read_bytes() == safetensors.torch.save(tensors, {"format": "pt"})
        assert [path.name for path in Path(folder).iterdir()] == ["w.safetensors"]
