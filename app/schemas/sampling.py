"""The sampling fields, the same on every transport."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from app.schemas.response_format import ResponseFormat
from app.schemas.wire_model import WireModel
from streaming import GenerationRequest, Prompt, SamplingParams
from streaming.errors import InvalidRequest

_DEFAULTS = SamplingParams()
_MAX_PRIORITY = GenerationRequest.max_priority
_REQUEST_FIELDS = {"priority", "timeout_s"}
"""Fields that are about the request as a whole, not about its tokens."""


def _check_biases(value: Any) -> Any:
    if not isinstance(value, dict) or any(
        type(bias) not in (int, float) for bias in value.values()
    ):
        raise PydanticCustomError("logit_bias_type", "must be an object of numbers by token id")
    return value


class SamplingFields(WireModel):
    """How tokens are chosen, when they end, and how urgent they are. `null` means the default."""

    max_tokens: int | None = Field(
        None, description="Most tokens to generate; never more than the context leaves."
    )
    min_tokens: int | None = Field(
        _DEFAULTS.min_tokens, description="End tokens are barred before so many tokens."
    )
    temperature: float | None = Field(
        _DEFAULTS.temperature, description="0 is greedy; at most 2.", examples=[0.7]
    )
    top_p: float | None = Field(_DEFAULTS.top_p, description="Nucleus sampling; 1 keeps all.")
    top_k: int | None = Field(
        _DEFAULTS.top_k, description="Keep the likeliest tokens only; 0 keeps all."
    )
    min_p: float | None = Field(
        _DEFAULTS.min_p, description="Least probability relative to the likeliest token."
    )
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="Strings that end the text and are not part of it."
    )
    include_stop_str_in_output: bool | None = Field(
        _DEFAULTS.include_stop_str_in_output, description="They are part of it."
    )
    stop_token_ids: Annotated[list[int], Field(fail_fast=True)] | None = Field(
        None, description="Token ids that end the text."
    )
    seed: int | None = Field(None, description="The same seed gives the same tokens.")
    presence_penalty: float | None = Field(
        _DEFAULTS.presence_penalty, description="-2 to 2, on tokens already generated."
    )
    frequency_penalty: float | None = Field(
        _DEFAULTS.frequency_penalty, description="-2 to 2, for each time a token was generated."
    )
    repetition_penalty: float | None = Field(
        _DEFAULTS.repetition_penalty,
        description="0.01 to 10; over 1 discourages tokens of prompt and text.",
    )
    logit_bias: (
        Annotated[
            dict[str, float],
            PlainValidator(_check_biases, json_schema_input_type=dict[str, float]),
        ]
        | None
    ) = Field(None, description="Added to the logits, by token id; -100 to 100.")
    ignore_eos: bool | None = Field(
        _DEFAULTS.ignore_eos, description="The model's end tokens do not end the text."
    )
    response_format: ResponseFormat | None = Field(
        None,
        description="What the text has to be. One that ends with `stop` is all of that, unless a "
        "stop string or stop token of the request cut it; one that ends with `length` is its "
        "beginning.",
    )
    priority: int | None = Field(
        0,
        description=f"-{_MAX_PRIORITY} to {_MAX_PRIORITY}; above 0 only as far as this server "
        "allows it. While requests wait, one of a higher priority is started before all of lower "
        "ones, those of other callers included; within a priority, callers take turns. None "
        "is passed over for ever.",
    )
    timeout_s: float | None = Field(
        None,
        description="The generation is ended with an error after so many seconds, waiting "
        "included; the server's own limit stays.",
        examples=[30],
    )

    def to_generation_request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        caller: str,
        model: str | None,
        metadata: Mapping[str, str],
    ) -> GenerationRequest:
        """Return the engine's form of a request for one log.

        Raises:
            InvalidRequest: a value is out of range; `param` names the field.
        """
        return GenerationRequest(
            prompt=prompt,
            params=params,
            caller=caller,
            model=model,
            priority=0 if self.priority is None else self.priority,
            timeout_s=self.timeout_s,
            metadata=metadata,
        )

    def to_sampling_params(
        self,
        *,
        default_max_tokens: int | None = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """Return the engine's form.

        Raises:
            InvalidRequest: a value is out of range; `param` names the field.
        """
        given = {
            name: value
            for name in SamplingFields.model_fields.keys() - _REQUEST_FIELDS
            if (value := getattr(self, name)) is not None
        }
        given.setdefault("max_tokens", default_max_tokens)
        if "stop" in given:
            given["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if "stop_token_ids" in given:
            given["stop_token_ids"] = frozenset(self.stop_token_ids or ())
        if "logit_bias" in given:
            given["logit_bias"] = _to_logit_bias(self.logit_bias or {})
        if (response_format := given.pop("response_format", None)) is not None:
            given["grammar"] = response_format.to_grammar()
        return SamplingParams(**given, logprobs=logprobs, prompt_logprobs=prompt_logprobs)


def _to_logit_bias(biases: Mapping[str, float]) -> Mapping[int, float]:
    try:
        return MappingProxyType({int(token_id): bias for token_id, bias in biases.items()})
    except ValueError as error:
        raise InvalidRequest(param="logit_bias", reason="keys are token ids") from error
