"""Which backend runs a model: the one asked for, or the one that fits the device. Imports a runtime only to use it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from moss_audio.errors import BackendError
from moss_audio.runtime.backend import Backend

Kind = Literal["openvino", "torch"]

EXTRAS: dict[Kind, str] = {"openvino": "pip install openvino", "torch": "pip install 'moss-audio[gpu]'"}
"""The backends, and how to get what each needs."""


def load_backend(
    folder: Path | str,
    kind: Kind | None = None,
    device: str | None = None,
    precision: str = "auto",
    threads: int | None = None,
) -> Backend:
    """Load the checkpoint `folder` to run on `device`, by default the CPU.

    `kind` None is PyTorch for a `cuda` or `mps` device and OpenVINO for any other. `precision` `auto` takes the weights
    as stored (OpenVINO; float weights as int8) or the device's usual type (PyTorch).

    Raises `BackendError` naming what to install or the valid values, and `CheckpointError`.
    """
    device = device or "cpu"
    if kind is None:
        kind = "torch" if device.lower().startswith(("cuda", "mps")) else "openvino"
    if kind not in EXTRAS:
        raise BackendError(f"backend is {kind!r}; valid: {', '.join(EXTRAS)}")
    if importlib.util.find_spec(kind) is None:
        raise BackendError(f"the {kind} backend is not installed; run: {EXTRAS[kind]}")
    if kind == "torch":
        from moss_audio.runtime.torch_backend import TorchBackend

        return TorchBackend.load(folder, precision, device)
    from moss_audio.runtime.openvino.backend import OpenVINOBackend

    return OpenVINOBackend.load(folder, precision, device.upper(), threads)
