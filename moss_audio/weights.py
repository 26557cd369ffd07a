"""Matrices as they are stored: float, int8 by output channel, or packed int4 by group. Knows numpy only.

A quantised matrix `X.weight [out, in]` is two or three tensors in a safetensors file, which say what they are:

    int8             X.weight I8 [out, in]      X.weight_scale [out, 1]
    int4 symmetric   X.weight U8 [out, in / 2]  X.weight_scale [out, groups]
    int4 asymmetric  X.weight U8 [out, in / 2]  X.weight_scale [out, groups]  X.weight_zero U8 [out, groups]

Scales are F16 or F32. A packed byte holds the even column in its low nibble; the nibbles are two's complement (-8…7)
in the symmetric form and 0…15 in the asymmetric one. Value = (stored - zero) · scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Scheme = Literal["float", "int8", "int4"]
SCHEMES: tuple[Scheme, ...] = ("float", "int8", "int4")

GROUP = 128
"""Columns that share an int4 scale, where the width allows it."""

SMALLEST_GROUP = 32
"""Below this the scales cost more than the nibbles save, and int8 is taken instead."""

ROWS_AT_ONCE = 2048
"""Rows quantised together: bounds the float copies that an embedding of 150,000 rows would need."""


@dataclass(frozen=True, eq=False)
class Weight:
    """One tensor as stored: `values` alone if `scale` is None, else an int8 or packed int4 matrix."""

    values: np.ndarray
    scale: np.ndarray | None = None
    zero: np.ndarray | None = None

    @property
    def scheme(self) -> Scheme:
        """How the values are stored."""
        if self.scale is None:
            return "float"
        return "int8" if self.values.dtype == np.int8 else "int4"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor it stands for, `[out, in]` for the packed form too."""
        rows, *rest = self.values.shape or (1,)
        return (rows, 2 * rest[0]) if self.scheme == "int4" else self.values.shape

    @property
    def group(self) -> int:
        """Columns under one scale."""
        return self.shape[1] // (self.scale.shape[1] if self.scale is not None else 1)


def quantise_int8(matrix: np.ndarray) -> Weight:
    """Symmetric int8 of `matrix [out, in]` with one scale a row: the row's largest magnitude becomes 127."""
    values = np.empty(matrix.shape, np.int8)
    scale = np.empty((len(matrix), 1), np.float32)
    for rows in _row_blocks(matrix):
        block = matrix[rows].astype(np.float32)
        scale[rows] = np.maximum(np.abs(block).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
        values[rows] = np.rint(block / scale[rows])
    return Weight(values, scale)


def quantise_int4(matrix: np.ndarray, group: int = GROUP, symmetric: bool = False) -> Weight:
    """Packed int4 of `matrix [out, in]`, a scale (and a zero point, unless symmetric) for every `group` columns.

    A width that `group` does not divide takes half of it, and so on; where 32 does not divide it either, the result
    is int8. Scales are float16 and the values are rounded with the scale as stored.
    """
    out, width = matrix.shape
    while width % group or group % 2:
        group //= 2
        if group < SMALLEST_GROUP:
            return quantise_int8(matrix)
    values = np.empty((out, width // 2), np.uint8)
    scale = np.empty((out, width // group), np.float16)
    zero = None if symmetric else np.empty(scale.shape, np.uint8)
    for rows in _row_blocks(matrix):
        block = matrix[rows].astype(np.float32).reshape(-1, width // group, group)
        low, high = block.min(axis=2), block.max(axis=2)
        if zero is None:
            scale[rows] = _float16(np.maximum(np.abs(low), np.abs(high)) / 7)
        else:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            scale[rows] = _float16((high - low) / 15)
            zero[rows] = np.clip(np.rint(-low / scale[rows]), 0, 15)
        levels = np.rint(block / scale[rows].astype(np.float32)[:, :, None])
        levels = np.clip(levels, -8, 7) if zero is None else np.clip(levels + zero[rows][:, :, None], 0, 15)
        nibbles = levels.astype(np.int8).view(np.uint8).reshape(-1, width) & 15
        values[rows] = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
    return Weight(values, scale, zero)


def dequantise(weight: Weight) -> np.ndarray:
    """The float32 tensor that `weight` stands for."""
    if weight.scale is None:
        return weight.values.astype(np.float32, copy=False)
    scale = weight.scale.astype(np.float32)
    if weight.scheme == "int8":
        return np.asarray(weight.values * scale)
    out, width = weight.shape
    nibbles = np.empty((out, width), np.int8)
    nibbles[:, 0::2], nibbles[:, 1::2] = weight.values & 15, weight.values >> 4
    levels = nibbles.reshape(out, -1, weight.group).astype(np.float32)
    levels -= (levels > 7) * 16 if weight.zero is None else weight.zero[:, :, None]
    levels *= scale[:, :, None]
    matrix: np.ndarray = levels.reshape(out, width)
    return matrix


def recode(weight: Weight, scheme: Scheme) -> Weight:
    """`weight` in another scheme; itself if it is stored so already."""
    if weight.scheme == scheme:
        return weight
    matrix = dequantise(weight)
    if scheme == "float":
        return Weight(matrix)
    return quantise_int8(matrix) if scheme == "int8" else quantise_int4(matrix)


def _float16(scale: np.ndarray) -> np.ndarray:
    """Scales rounded to float16, no smaller than its smallest number of full precision."""
    return np.maximum(scale, np.finfo(np.float16).smallest_normal).astype(np.float16)


def _row_blocks(matrix: np.ndarray) -> Iterator[slice]:
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, len(matrix), ROWS_AT_ONCE))
