"""Layers that do what a model's own do, faster, and give their places back if need be."""

from __future__ import annotations

from collections.abc import Callable

import torch


class StandIn(torch.nn.Module):
    """Stands in for `original`, which may lend it its weights."""

    def __init__(self, original: torch.nn.Module) -> None:
        super().__init__()
        self.original = original

    def give_back(self) -> torch.nn.Module:
        """Return the original, as it was to the bit."""
        return self.original


def replace_layers(
    model: torch.nn.Module, stand_in_for: Callable[[torch.nn.Module], StandIn | None]
) -> None:
    """Put what `stand_in_for` makes of a layer in its place; None leaves it there."""
    made: dict[torch.nn.Module, StandIn | None] = {}  # a layer may have several places
    for parent in tuple(model.modules()):
        if isinstance(parent, StandIn):
            continue
        for name, layer in tuple(parent.named_children()):
            if isinstance(layer, StandIn):
                continue
            if layer not in made:
                made[layer] = stand_in_for(layer)
            if (stand_in := made[layer]) is not None:
                setattr(parent, name, stand_in)


def restore_layers(model: torch.nn.Module) -> None:
    """Put all originals back."""
    for parent in tuple(model.modules()):
        for name, layer in tuple(parent.named_children()):
            if isinstance(layer, StandIn):
                setattr(parent, name, layer.give_back())
