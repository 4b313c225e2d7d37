"""Layers are replaced once, at all depths, and restored."""

from __future__ import annotations

import torch

from streaming.backends.optimization.module_replacement import (
    ModuleReplacement,
    replace_layers,
    restore_layers,
)


class Negative(ModuleReplacement):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = -self.original(rows)
        return product


def negative_of(layer: torch.nn.Module) -> ModuleReplacement | None:
    return Negative(layer) if isinstance(layer, torch.nn.Linear) else None


def make_model() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Sequential(torch.nn.Linear(3, 2))
    )


def test_layers_are_replaced_at_all_depths() -> None:
    model = make_model()
    relu = model[1]
    inner = model[2]
    assert isinstance(inner, torch.nn.Sequential)
    replace_layers(model, negative_of)
    assert isinstance(model[0], Negative)
    assert model[1] is relu
    assert model[2] is inner
    assert isinstance(inner[0], Negative)


def test_a_replacement_is_not_replaced_again() -> None:
    model = make_model()
    replace_layers(model, negative_of)
    first = model[0]
    replace_layers(model, negative_of)
    assert model[0] is first
    assert isinstance(first.original, torch.nn.Linear)


def test_restoring_brings_back_the_same_layers() -> None:
    model = make_model()
    layers = list(model.modules())
    replace_layers(model, negative_of)
    restore_layers(model)
    assert [id(layer) for layer in model.modules()] == [id(layer) for layer in layers]


def test_a_layer_with_two_parents_has_one_replacement() -> None:
    shared = torch.nn.Linear(3, 3)
    first, second = torch.nn.Sequential(shared), torch.nn.Sequential(shared)
    model = torch.nn.Sequential(first, second)
    replace_layers(model, negative_of)
    replacements = [part[0] for part in (first, second)]
    assert isinstance(replacements[0], Negative)
    assert replacements[0] is replacements[1]
    restore_layers(model)
    assert [part[0] for part in (first, second)] == [shared] * 2
