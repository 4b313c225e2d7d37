"""The sampling fields, which all dialects share."""

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
"""Fields that belong to the request, not to its sampling parameters."""


def _check_biases(value: Any) -> Any:
    if not isinstance(value, dict) or any(
        type(bias) not in (int, float) for bias in value.values()
    ):
        raise PydanticCustomError(
            "logit_bias_type", "must be an object that maps token ids to numbers"
        )
    return value


class SamplingFields(WireModel):
    """How to sample tokens, when to stop, and how urgent the request is.

    `null` means the default.
    """

    max_tokens: int | None = Field(
        None, description="Most tokens to generate. The rest of the context is a limit, too."
    )
    min_tokens: int | None = Field(
        _DEFAULTS.min_tokens, description="Fewest tokens to generate before the text may end."
    )
    temperature: float | None = Field(
        _DEFAULTS.temperature,
        description="0 to 2. 0 always picks the likeliest token.",
        examples=[0.7],
    )
    top_p: float | None = Field(_DEFAULTS.top_p, description="Nucleus sampling. 1 keeps all.")
    top_k: int | None = Field(
        _DEFAULTS.top_k, description="Keep only the k likeliest tokens. 0 keeps all."
    )
    min_p: float | None = Field(
        _DEFAULTS.min_p, description="Least probability of a token, relative to the likeliest."
    )
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="Strings that end the text. The text does not include them."
    )
    include_stop_str_in_output: bool | None = Field(
        _DEFAULTS.include_stop_str_in_output, description="Include the stop string in the text."
    )
    stop_token_ids: Annotated[list[int], Field(fail_fast=True)] | None = Field(
        None, description="Token ids that end the text."
    )
    seed: int | None = Field(None, description="The same seed gives the same tokens.")
    presence_penalty: float | None = Field(
        _DEFAULTS.presence_penalty,
        description="-2 to 2. Applies to tokens generated before.",
    )
    frequency_penalty: float | None = Field(
        _DEFAULTS.frequency_penalty,
        description="-2 to 2. Applies once for each time that a token was generated.",
    )
    repetition_penalty: float | None = Field(
        _DEFAULTS.repetition_penalty,
        description="0.01 to 10. Above 1 discourages tokens of the prompt and the text.",
    )
    logit_bias: (
        Annotated[
            dict[str, float],
            PlainValidator(_check_biases, json_schema_input_type=dict[str, float]),
        ]
        | None
    ) = Field(None, description="Numbers to add to the logits, by token id; -100 to 100.")
    ignore_eos: bool | None = Field(
        _DEFAULTS.ignore_eos, description="Go on after the model's end tokens."
    )
    response_format: ResponseFormat | None = Field(
        None,
        description="Constrains the text. It is complete if it ends with `stop`, unless a stop "
        "string or stop token of the request cut it off. With `length`, it is incomplete.",
    )
    priority: int | None = Field(
        0,
        description=f"-{_MAX_PRIORITY} to {_MAX_PRIORITY}. The server may limit values above 0. "
        "Waiting requests with a higher priority start first, across all callers. Within a "
        "priority, callers take turns. No request waits for ever.",
    )
    timeout_s: float | None = Field(
        None,
        description="Seconds, including waiting, after which the generation ends with an error. "
        "The server's own limit still applies.",
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
        """Return an engine request for one generation.

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
        """Return the sampling parameters for the engine.

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
        raise InvalidRequest(
            param="logit_bias", reason='must have token ids as its keys, such as "42"'
        ) from error
