"""The request of `POST /v1/responses` and of `response.create`: OpenAI's fields and our own.

Unknown keys are ignored, because clients of this dialect send extensions of other servers. Known
keys that are not supported are refused if ignoring them would change the answer.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.responses.schemas.items import (
    MAX_ITEMS,
    InputItem,
    MessageItem,
    check_supported_content,
)
from app.responses.schemas.objects import Item
from app.responses.schemas.text import TextFields
from app.responses.schemas.tools import (
    MAX_TOOLS,
    FunctionTool,
    ToolChoiceField,
    check_supported_tools,
    echo_tool_choice,
    to_tool_choice,
    to_tools,
)
from app.schemas.request_fields import Metadata, ReasoningEffort
from app.schemas.sampling import SamplingFields
from app.schemas.validation import api_error
from app.schemas.wire_model import WireModel
from streaming import ChatMessage, ChatPrompt, GenerationRequest, SamplingParams
from streaming.errors import InvalidRequest

MAX_LABEL_CHARS = 256
MAX_TOP_LOGPROBS = 20
LOGPROBS = "message.output_text.logprobs"

_UNSUPPORTED = ("conversation", "prompt", "context_management", "moderation")
_INSTEAD = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "messages": "input",
    "functions": "tools",
    "function_call": "tool_choice",
    "reasoning_effort": "reasoning.effort",
}
"""Fields of other dialects, and the field of this one to use; ignoring them would mislead."""

_Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]
_Input = str | Annotated[list[InputItem], Field(fail_fast=True, max_length=MAX_ITEMS)] | None


class _Options(WireModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class StreamOptions(_Options):
    """Options of the stream, none of which has an effect."""

    include_obfuscation: bool | None = Field(
        None, description="No effect: events are not obfuscated."
    )


class PromptCacheOptions(_Options):
    """Options of the prefix cache."""

    prewarm: bool | None = Field(None, description="`true` has the effect of `generate: false`.")


class Reasoning(_Options):
    """Options of reasoning, for models whose chat template reads them."""

    effort: ReasoningEffort | None = Field(
        None,
        description="Passed to the chat template as `reasoning_effort`; `none` also sets "
        "`enable_thinking` to false. No effect if the template reads neither.",
    )
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="No effect: the whole reasoning is returned in `content`."
    )


class ResponseRequest(SamplingFields):
    """A request for one response. Unknown fields are ignored; `null` means the default."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: _Label | None = Field(
        None, description="The model to use; by default, the one that is served."
    )
    input: str | Annotated[list[InputItem], Field(fail_fast=True, max_length=MAX_ITEMS)] | None = (
        Field(None, description="Text is one message of the user.")
    )
    instructions: str | None = Field(
        None, description="The system message; that of the previous response is not inherited."
    )
    previous_response_id: _Label | None = Field(
        None, description="The response to continue: its context comes first."
    )
    store: bool | None = Field(
        True,
        description="Store the response, so that it can be retrieved and continued later.",
    )
    background: bool | None = Field(
        False,
        description="Return at once and generate in the background, even if the client "
        "disconnects; requires `store`.",
    )
    stream: bool | None = Field(False, description="Return Server-Sent Events.")
    stream_options: StreamOptions | None = Field(None, description="No effect.")
    generate: bool | None = Field(
        True,
        description="`false` only reads the prompt into the prefix cache and generates nothing; "
        "continue from the response.",
    )
    tools: Annotated[list[FunctionTool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = (
        Field(None, description="Functions that the model may call.")
    )
    tool_choice: ToolChoiceField | None = Field("auto", description="Which of them it calls.")
    parallel_tool_calls: bool | None = Field(
        None,
        description="Allow several calls in one answer. By default they are allowed if the "
        "model's chat template supports calls; otherwise an answer has one.",
    )
    max_output_tokens: int | None = Field(
        None,
        description="Maximum number of tokens to generate; by default, the rest of the context.",
    )
    top_logprobs: int | None = Field(
        0,
        description="Most likely alternatives to return with each token, 0 to 20; only with "
        f"`include: [{LOGPROBS}]`.",
    )
    text: TextFields | None = Field(None, description="The format of the answer's text.")
    reasoning: Reasoning | None = Field(None, description="Options of reasoning.")
    truncation: Literal["auto", "disabled"] | None = Field(
        "disabled",
        description="`auto` drops the oldest turns of a conversation that does not fit the "
        "context; `disabled` refuses it.",
    )
    metadata: Metadata | None = Field(None, description="Labels, returned unchanged.")
    include: (
        Annotated[
            list[
                Literal[
                    "message.output_text.logprobs",
                    "reasoning.encrypted_content",
                    "file_search_call.results",
                    "web_search_call.results",
                    "web_search_call.action.sources",
                    "message.input_image.image_url",
                    "computer_call_output.output.image_url",
                    "code_interpreter_call.outputs",
                ]
            ],
            Field(max_length=16),
        ]
        | None
    ) = Field(
        None,
        description=f"`{LOGPROBS}` returns log probabilities. The others have no effect: "
        "reasoning is not encrypted, and the other items do not occur.",
    )
    service_tier: _Label | None = Field(
        None, description="No effect: all requests are served as `default`."
    )
    user: _Label | None = Field(None, description="No effect.")
    safety_identifier: _Label | None = Field(None, description="No effect; returned unchanged.")
    prompt_cache_key: _Label | None = Field(
        None,
        description="No effect: every prompt is looked up in the prefix cache; returned unchanged.",
    )
    prompt_cache_options: PromptCacheOptions | None = Field(
        None, description="Only `prewarm` has an effect."
    )
    max_tool_calls: int | None = Field(
        None,
        description="No effect: it limits tools that a server runs, and here clients run all; "
        "returned unchanged.",
    )
    max_tokens: int | None = Field(None, description="Must be `null`: use `max_output_tokens`.")
    response_format: None = Field(None, description="Must be `null`: use `text.format`.")

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, fields: Any) -> Any:
        """Refuse what is not supported, before the other validators drop or refuse it."""
        if isinstance(fields, dict):
            for name in _UNSUPPORTED:
                if fields.get(name) is not None:
                    raise api_error("invalid_request", name, "is not supported here")
            for name, instead in _INSTEAD.items():
                if fields.get(name) is not None:
                    reason = f"is not a field of this route; use {instead}"
                    raise api_error("invalid_request", name, reason)
            check_supported_content(fields.get("input"))
            check_supported_tools(fields.get("tools"))
        return fields

    @property
    def is_stored(self) -> bool:
        """Whether the response can be retrieved and continued by its id."""
        return self.store is not False

    @property
    def generates(self) -> bool:
        """Whether text is generated; otherwise the prompt is only read into the prefix cache."""
        options = self.prompt_cache_options
        return self.generate is not False and not (options is not None and options.prewarm)

    @property
    def includes_logprobs(self) -> bool:
        """Whether the response has log probabilities."""
        return LOGPROBS in (self.include or ())

    def to_items(self, key: str) -> tuple[Item, ...]:
        """Return the input as it is stored.

        Args:
            key: makes the ids of items that have none.
        """
        match self.input:
            case None:
                items: list[Any] = []
            case str(text):
                items = [MessageItem(role="user", content=text)]
            case list(given):
                items = given
        return tuple(item.to_item(f"{key}_i{index}") for index, item in enumerate(items))

    def to_request(self, messages: tuple[ChatMessage, ...], *, caller: str) -> GenerationRequest:
        """Return the engine's request.

        Args:
            messages: the whole conversation, including the instructions.
            caller: who asks.

        Raises:
            InvalidRequest: a value is out of range, or fields contradict each other.
        """
        return self.to_generation_request(
            ChatPrompt(
                messages,
                tools=to_tools(self.tools or []),
                tool_choice=to_tool_choice(self.tool_choice or "auto"),
                parallel_tool_calls=self.parallel_tool_calls,
                template_kwargs=self._template_kwargs(),
            ),
            self._params(),
            caller=caller,
            model=self.model,
            metadata={},
        )

    def check(self) -> None:
        """Check ranges, and fields against each other.

        Raises:
            InvalidRequest: a value is out of range, or fields contradict each other.
        """
        if self.background and not self.is_stored:
            raise InvalidRequest(param="background", reason="requires store")
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise InvalidRequest(
                param="max_output_tokens",
                reason=f"must be at least 1 (got {self.max_output_tokens})",
            )
        if not 0 <= (self.top_logprobs or 0) <= MAX_TOP_LOGPROBS:
            raise InvalidRequest(
                param="top_logprobs",
                reason=f"must be 0 to {MAX_TOP_LOGPROBS} (got {self.top_logprobs})",
            )
        if self.max_tool_calls is not None and not 0 < self.max_tool_calls < 2**31:
            raise InvalidRequest(param="max_tool_calls", reason=f"must be 1 to {2**31 - 1}")

    def echo(self) -> dict[str, Any]:
        """Return the fields of the request that every snapshot of the response repeats."""
        params = self._params()
        reasoning = self.reasoning
        return {
            "previous_response_id": self.previous_response_id,
            "instructions": self.instructions,
            "tools": [tool.echo() for tool in self.tools or ()],
            "tool_choice": echo_tool_choice(self.tool_choice or "auto"),
            "truncation": self.truncation or "disabled",
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "text": (self.text or TextFields()).echo(),
            "top_p": params.top_p,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "top_logprobs": self.top_logprobs or 0,
            "temperature": params.temperature,
            "reasoning": None
            if reasoning is None
            else {"effort": reasoning.effort, "summary": reasoning.summary},
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": self.max_tool_calls,
            "store": self.is_stored,
            "background": bool(self.background),
            "service_tier": "default",
            "metadata": self.metadata or {},
            "safety_identifier": self.safety_identifier,
            "prompt_cache_key": self.prompt_cache_key,
        }

    def _params(self) -> SamplingParams:
        params = self.to_sampling_params(
            logprobs=(self.top_logprobs or 0) if self.includes_logprobs else None
        )
        grammar = None if self.text is None else self.text.to_grammar()
        return replace(params, max_tokens=self.max_output_tokens, grammar=grammar)

    def _template_kwargs(self) -> str:
        effort = None if self.reasoning is None else self.reasoning.effort
        if effort is None:
            return ""
        disabled = {"enable_thinking": False} if effort == "none" else {}
        return json.dumps({"reasoning_effort": effort, **disabled})


class CompactRequest(_Options):
    """A conversation to be summarized. Unknown fields are ignored."""

    model: _Label | None = Field(
        None, description="The model to use; by default, the one that is served."
    )
    input: _Input = Field(None, description="Text is one message of the user.")
    instructions: str | None = Field(
        None, description="The system message for the summary; not part of the result."
    )
    previous_response_id: _Label | None = Field(
        None, description="The response to continue: its context comes first."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            check_supported_content(fields.get("input"))
        return fields

    def to_response_request(self) -> ResponseRequest:
        """Return the request with the same conversation."""
        return ResponseRequest(
            model=self.model,
            input=self.input,
            instructions=self.instructions,
            previous_response_id=self.previous_response_id,
        )


class InputTokens(BaseModel):
    """The number of tokens in a prompt."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int
