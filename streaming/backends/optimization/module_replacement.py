"""Replace layers of a model by faster equivalents, and restore the originals."""

from __future__ import annotations

from collections.abc import Callable

import torch


class ModuleReplacement(torch.nn.Module):
    """A layer that replaces another one.

    Args:
        original: the replaced layer. Subclasses may use, and change, its weights.
    """

    def __init__(self, original: torch.nn.Module) -> None:
        super().__init__()
        self.original = original

    def restore(self) -> torch.nn.Module:
        """Return the original layer, with the same bits in its weights as before."""
        return self.original


def replace_layers(
    model: torch.nn.Module, make_replacement: Callable[[torch.nn.Module], ModuleReplacement | None]
) -> None:
    """Replace layers of a model in place, at all depths.

    Args:
        model: whose layers are replaced; the model itself is not.
        make_replacement: called once per layer; returns its replacement, or None to leave it.
    """
    # A layer with several parents (tied weights) gets one replacement.
    made: dict[torch.nn.Module, ModuleReplacement | None] = {}
    for parent in tuple(model.modules()):
        if isinstance(parent, ModuleReplacement):
            continue
        for name, layer in tuple(parent.named_children()):
            if isinstance(layer, ModuleReplacement):
                continue
            if layer not in made:
                made[layer] = make_replacement(layer)
            if (replacement := made[layer]) is not None:
                setattr(parent, name, replacement)


def restore_layers(model: torch.nn.Module) -> None:
    """Replace all `ModuleReplacement`s of a model by their originals."""
    for parent in tuple(model.modules()):
        for name, layer in tuple(parent.named_children()):
            if isinstance(layer, ModuleReplacement):
                setattr(parent, name, layer.restore())
