"""Layers that do what a model's own do, faster, and give their places back if need be."""

from __future__ import annotations

from collections.abc import Callable

import torch


class ModuleReplacement(torch.nn.Module):
    """Stands in for `original`, which may lend it its weights."""

    def __init__(self, original: torch.nn.Module) -> None:
        super().__init__()
        self.original = original

    def restore(self) -> torch.nn.Module:
        """Return the original, as it was to the bit."""
        return self.original


def replace_layers(
    model: torch.nn.Module, stand_in_for: Callable[[torch.nn.Module], ModuleReplacement | None]
) -> None:
    """Put what `stand_in_for` makes of a layer in its place; None leaves it there."""
    made: dict[torch.nn.Module, ModuleReplacement | None] = {}  # a layer may have several places
    for parent in tuple(model.modules()):
        if isinstance(parent, ModuleReplacement):
            continue
        for name, layer in tuple(parent.named_children()):
            if isinstance(layer, ModuleReplacement):
                continue
            if layer not in made:
                made[layer] = stand_in_for(layer)
            if (stand_in := made[layer]) is not None:
                setattr(parent, name, stand_in)


def restore_layers(model: torch.nn.Module) -> None:
    """Put all originals back."""
    for parent in tuple(model.modules()):
        for name, layer in tuple(parent.named_children()):
            if isinstance(layer, ModuleReplacement):
                setattr(parent, name, layer.restore())
