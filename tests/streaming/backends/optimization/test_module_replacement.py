"""Layers are replaced where something stands in for them, once, and come back as they were."""

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


def test_layers_are_replaced_wherever_they_lie() -> None:
    model = make_model()
    relu = model[1]
    inner = model[2]
    assert isinstance(inner, torch.nn.Sequential)
    replace_layers(model, negative_of)
    assert isinstance(model[0], Negative)
    assert model[1] is relu
    assert model[2] is inner
    assert isinstance(inner[0], Negative)


def test_no_layer_is_replaced_twice() -> None:
    model = make_model()
    replace_layers(model, negative_of)
    first = model[0]
    replace_layers(model, negative_of)
    assert model[0] is first
    assert isinstance(first.original, torch.nn.Linear)


def test_restoring_puts_the_same_layers_back() -> None:
    model = make_model()
    layers = list(model.modules())
    replace_layers(model, negative_of)
    restore_layers(model)
    assert [id(layer) for layer in model.modules()] == [id(layer) for layer in layers]


def test_a_layer_in_two_places_has_one_stand_in() -> None:
    shared = torch.nn.Linear(3, 3)
    first, second = torch.nn.Sequential(shared), torch.nn.Sequential(shared)
    model = torch.nn.Sequential(first, second)
    replace_layers(model, negative_of)
    stand_ins = [part[0] for part in (first, second)]
    assert isinstance(stand_ins[0], Negative)
    assert stand_ins[0] is stand_ins[1]
    restore_layers(model)
    assert [part[0] for part in (first, second)] == [shared] * 2
