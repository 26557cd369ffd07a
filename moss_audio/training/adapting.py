"""LoRA in a stage: a recipe's `"lora": {"pattern": …, "rank": …, "alpha": …}` are the arguments of `model.lora.adapt`.

The recipe's `lr` then gives a rate to `.*lora_`, and to nothing else. The stage's state holds the small matrices; what
the adapted layers are with them is written beside it, as `RECIPE_merged.safetensors`, for `training.export`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from moss_audio.model.lora import adapt, adapted, save_merged
from moss_audio.training.processes import processes


def begin(model: nn.Module, recipe: Mapping[str, Any]) -> None:
    """Adapt the model where the recipe says so."""
    if "lora" in recipe:
        adapt(model, **recipe["lora"])


def end(model: nn.Module, state: Path) -> Path | None:
    """Write the merged weights beside `state`, if anything was adapted."""
    if processes().rank or not any(adapted(model)):
        return None
    merged = state.with_name(f"{state.stem}_merged.safetensors")
    save_merged(model, merged)
    return merged
