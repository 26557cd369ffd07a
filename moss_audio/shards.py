"""One safetensors file: its header read with suspicion, its tensors mapped, a new one written.

The format is eight bytes of header length, a JSON header, and the tensors (github.com/huggingface/safetensors). Read
here and not by the library of that name, because that one cannot give bfloat16 to numpy. Knows no model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moss_audio.errors import CheckpointError

FLOAT_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
INTEGER_TYPES: dict[str, np.dtype[Any]] = {"I8": np.dtype("i1"), "U8": np.dtype("u1")}
"""Types that are read. numpy has no bfloat16: it is widened from its bits."""

LARGEST_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a header: which bytes of which file it is."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of `file` by name. Raises `CheckpointError` where the file is damaged or has other types."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, LARGEST_HEADER_BYTES):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        entries = {}
        for name, tensor in header.items():
            start, stop = (8 + length + int(offset) for offset in tensor["data_offsets"])
            entries[name] = Entry(file, str(tensor["dtype"]), tuple(int(n) for n in tensor["shape"]), start, stop)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}; download it again") from error
    for name, entry in entries.items():
        dtype = (FLOAT_TYPES | INTEGER_TYPES).get(entry.dtype)
        if dtype is None:
            valid = ", ".join(FLOAT_TYPES | INTEGER_TYPES)
            raise CheckpointError(f"tensor {name!r} in {file} has type {entry.dtype}; valid: {valid}")
        fits = 8 + length <= entry.start <= entry.stop <= size and min(entry.shape, default=0) >= 0
        if not fits or entry.stop - entry.start != math.prod(entry.shape) * dtype.itemsize:
            raise CheckpointError(f"tensor {name!r} is cut off or misplaced in {file}; download it again")
    return entries


def map_array(entry: Entry) -> np.ndarray:
    """A tensor as a view of its file, which is read from disk when touched; bfloat16 as a float32 copy."""
    # Copy-on-write pages are private and count as writable, which OpenVINO asks of arrays that it shares.
    raw = np.asarray(np.memmap(entry.file, np.uint8, "c")[entry.start : entry.stop])
    array: np.ndarray = raw.view((FLOAT_TYPES | INTEGER_TYPES)[entry.dtype]).reshape(entry.shape)
    return (array.astype(np.uint32) << 16).view(np.float32) if entry.dtype == "BF16" else array


def write_shard(file: Path, tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Write one file, its data aligned to 64 bytes; returns its names. Raises `CheckpointError` for other types."""
    types = {dtype: name for name, dtype in (FLOAT_TYPES | INTEGER_TYPES).items() if name != "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    arrays, stop = sorted(tensors.items(), key=lambda item: -item[1].itemsize), 0
    for name, array in arrays:
        if array.dtype not in types:
            raise CheckpointError(f"tensor {name!r} is {array.dtype}; valid: float32, float16, or a quantised Weight")
        start, stop = stop, stop + array.nbytes
        header[name] = {"dtype": types[array.dtype], "shape": list(array.shape), "data_offsets": [start, stop]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-(len(encoded) + 8) % 64)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, array in arrays:
            stream.write(array.tobytes())
    return list(tensors)
