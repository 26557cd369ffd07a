"""The pieces that encoder and decoder graphs share: weights as constants, linear layers, norms, the gated MLP.

Every piece is spelt the way in which OpenVINO's CPU plugin recognises it (docs/openvino.md shows the executed graph).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import openvino as ov
from openvino import opset13 as op

from moss_audio.checkpoint import Checkpoint
from moss_audio.weights import Scheme, Weight


class Weights:
    """A checkpoint's tensors as constants, in one storage scheme (None: as stored).

    Constants share their numpy memory (mapped files, or arrays quantised on the way), so `arrays` must live as long as
    the graphs and whatever is compiled from them.
    """

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme | None = None) -> None:
        self.checkpoint, self.config, self.scheme = checkpoint, checkpoint.config, scheme
        self.arrays: list[np.ndarray | ov.Tensor] = []

    def vector(self, name: str) -> ov.Node:
        """A bias, norm or convolution weight in float32."""
        return self.constant(self.checkpoint.float32(name))

    def constant(self, array: np.ndarray, packed: ov.Type | None = None) -> ov.Node:
        """A constant over the array's own memory; `packed` reads its bytes as two 4-bit numbers each."""
        array = np.require(array, requirements=["C", "A", "W"])
        self.arrays.append(array)
        if packed is None:
            return op.constant(array, shared_memory=True)
        tensor = ov.Tensor(array, ov.Shape([*array.shape[:-1], 2 * array.shape[-1]]), packed)
        self.arrays.append(tensor)
        return op.constant(tensor, shared_memory=True)

    def linear(self, x: ov.Node, name: str, bias: bool = False) -> ov.Node:
        """`x [..., in]` times `name.weight [out, in]`, plus `name.bias`."""
        weight = self.checkpoint.weight(f"{name}.weight", self.scheme)
        y = op.matmul(x, self.matrix(weight), transpose_a=False, transpose_b=True)
        return op.add(y, self.vector(f"{name}.bias")) if bias else y

    def matrix(self, weight: Weight) -> ov.Node:
        """A float32 view of a matrix `[out, in]` that the plugin folds into the product: it stays compressed."""
        if weight.scale is None:
            return self.constant(weight.values.astype(np.float32, copy=False))
        scale = weight.scale.astype(np.float32)
        if weight.scheme == "int8":
            return op.multiply(op.convert(self.constant(weight.values), ov.Type.f32), self.constant(scale))
        out, width = weight.shape
        packed = self.constant(
            weight.values.reshape(out, width // weight.group, weight.group // 2),
            ov.Type.i4 if weight.zero is None else ov.Type.u4,
        )
        levels = op.convert(packed, ov.Type.f32)
        if weight.zero is not None:
            levels = op.subtract(levels, op.convert(self.constant(weight.zero[:, :, None]), ov.Type.f32))
        return op.reshape(op.multiply(levels, self.constant(scale[:, :, None])), ints(out, width), special_zero=False)

    def rows(self, name: str, index: ov.Node) -> ov.Node:
        """Rows `index` of the matrix `name` in float32: what is looked up is widened, not the table."""
        weight = self.checkpoint.weight(name, self.scheme)
        if weight.scale is None:
            return op.gather(self.matrix(weight), index, ints(0, scalar=True))
        values = op.gather(self.constant(weight.values), index, ints(0, scalar=True))
        scale = op.gather(self.constant(weight.scale.astype(np.float32)), index, ints(0, scalar=True))
        return op.multiply(op.convert(values, ov.Type.f32), scale)

    def gated_mlp(self, x: ov.Node, name: str) -> ov.Node:
        """`down(silu(gate(x)) · up(x))`."""
        gate = op.swish(self.linear(x, f"{name}.gate_proj"))
        return self.linear(op.multiply(gate, self.linear(x, f"{name}.up_proj")), f"{name}.down_proj")

    def layer_norm(self, x: ov.Node, name: str, eps: float) -> ov.Node:
        """LayerNorm over the last axis."""
        normed = op.mvn(x, ints(-1), normalize_variance=True, eps=eps, eps_mode="INSIDE_SQRT")
        return op.add(op.multiply(normed, self.vector(f"{name}.weight")), self.vector(f"{name}.bias"))

    def rms_norm(self, x: ov.Node, name: str, eps: float) -> ov.Node:
        """RMSNorm over the last axis, `x · (1 / sqrt(mean(x²) + eps)) · weight` (arXiv 1910.07467)."""
        mean = op.reduce_mean(op.power(x, floats(2.0)), ints(-1), keep_dims=True)
        scale = op.divide(floats(1.0), op.sqrt(op.add(mean, floats(eps))))
        return op.multiply(op.multiply(x, scale), self.vector(f"{name}.weight"))


def parameter(name: str, dtype: type[np.generic], *shape: int) -> ov.Node:
    """An input of the graph; -1 is any length."""
    node = op.parameter(list(shape), dtype, name)
    node.output(0).tensor.set_names({name})
    return node


def result(name: str, node: ov.Node) -> ov.Node:
    """An output of the graph."""
    end = op.result(node)
    end.output(0).tensor.set_names({name})
    return end


def ints(*values: int, scalar: bool = False) -> ov.Node:
    """An int64 constant: a list, or one number without dimensions."""
    return op.constant(np.array(values[0] if scalar else values, np.int64))


def floats(value: float) -> ov.Node:
    """A float32 constant without dimensions."""
    return op.constant(np.float32(value))


def heads(x: ov.Node, n_heads: int, head_dim: int) -> ov.Node:
    """`[B, T, n_heads · head_dim]` → `[B, T, n_heads, head_dim]`."""
    return op.reshape(x, ints(0, 0, n_heads, head_dim), special_zero=True)


def swap(x: ov.Node, order: Sequence[int] = (0, 2, 1, 3)) -> ov.Node:
    """`x` with its axes in another order, by default positions and heads exchanged."""
    return op.transpose(x, ints(*order))


def sinusoids(length: int, width: int) -> np.ndarray:
    """Whisper's positions `[1, length, width]`: sines in the first half, cosines in the second (arXiv 2212.04356)."""
    rates = np.exp(-math.log(10_000) / (width // 2 - 1) * np.arange(width // 2, dtype=np.float32))
    angles = np.arange(length, dtype=np.float32)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[None]
