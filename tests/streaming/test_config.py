"""Fields and defaults of the configuration."""

from __future__ import annotations

import dataclasses

import pytest

from streaming.config import BackendName, EngineConfig, ModelConfig


def test_a_config_is_frozen_and_named_only():
    for config in (EngineConfig(), ModelConfig()):
        name = dataclasses.fields(config)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, None)
        with pytest.raises(TypeError):
            type(config)(None)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("config", [EngineConfig, ModelConfig])
def test_the_docstring_names_every_field_and_no_other(config: type[EngineConfig | ModelConfig]):
    attributes = (config.__doc__ or "").partition("Attributes:")[2]
    documented = [
        line.strip().partition(":")[0]
        for line in attributes.splitlines()
        if line.startswith(" " * 8) and not line.startswith(" " * 9)
    ]
    assert documented == [field.name for field in dataclasses.fields(config)]


def test_the_name_of_a_number_ends_with_its_unit():
    units = {"_s", "_bytes", "_tokens", "_requests", "_threads", "_len", "_seqs", "_blocks"}
    for config in (EngineConfig(), ModelConfig()):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and field.name != "max_priority":
                assert any(field.name.endswith(unit) for unit in units), field.name
                assert value > 0


def test_a_backend_is_found_by_its_name():
    assert BackendName("scripted") is BackendName.SCRIPTED
    assert ModelConfig().backend in BackendName
