"""`POST /v1/responses`: OpenAI's fields and ours.

Keys that we do not know are skipped, as clients of this dialect send what their own servers like to
see. Keys that we know and cannot honour, and whose loss would change the answer, are refused.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import ErrorInfo, RequestRefused
from app.responses.schemas.items import MAX_ITEMS, InputItem, Item, MessageItem, refuse_unsupported
from app.responses.schemas.text import TextFields
from app.responses.schemas.tools import (
    MAX_TOOLS,
    FunctionTool,
    ToolChoiceField,
    echo_tool_choice,
    refuse_hosted_tools,
    to_tool_choice,
    to_tools,
)
from app.schemas.request_fields import Metadata, ReasoningEffort
from app.schemas.sampling import SamplingFields
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
"""Fields of other dialects, which a client would miss if they were skipped."""

_Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]
_Input = str | Annotated[list[InputItem], Field(fail_fast=True, max_length=MAX_ITEMS)] | None


class _Options(WireModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class StreamOptions(_Options):
    include_obfuscation: bool | None = Field(
        None, description="Makes no difference: nothing is obfuscated."
    )


class PromptCacheOptions(_Options):
    prewarm: bool | None = Field(None, description="`true` is the same as `generate: false`.")


class Reasoning(_Options):
    """How the model thinks, where its chat template asks."""

    effort: ReasoningEffort | None = Field(
        None,
        description="For the chat template, as its variable `reasoning_effort`; `none` also sets "
        "`enable_thinking` to false. Makes no difference where the template reads neither.",
    )
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="Makes no difference: reasoning is given as it is, in `content`."
    )


class ResponseRequest(SamplingFields):
    """One turn. Unknown fields are skipped; `null` means the default."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: _Label | None = Field(
        None, description="The model that is wanted; without it, the one that is served."
    )
    input: str | Annotated[list[InputItem], Field(fail_fast=True, max_length=MAX_ITEMS)] | None = (
        Field(None, description="Text is one turn of the user.")
    )
    instructions: str | None = Field(
        None, description="The system's turn; that of an earlier response is not taken over."
    )
    previous_response_id: _Label | None = Field(
        None, description="The response that this one goes on from: its context comes first."
    )
    store: bool | None = Field(
        True,
        description="Keep the response: it can be fetched, and be gone on from, later.",
    )
    background: bool | None = Field(
        False, description="Answer at once and generate on, whoever leaves; needs `store`."
    )
    stream: bool | None = Field(False, description="Answer with Server-Sent Events.")
    stream_options: StreamOptions | None = Field(None, description="Makes no difference.")
    generate: bool | None = Field(
        True,
        description="`false` has the model read the input, and write nothing: a response to go on "
        "from, whose beginning is in the prefix cache.",
    )
    tools: Annotated[list[FunctionTool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = (
        Field(None, description="Functions that the answer may call.")
    )
    tool_choice: ToolChoiceField | None = Field("auto", description="Which of them it calls.")
    parallel_tool_calls: bool | None = Field(
        None,
        description="One answer may call several functions. By default it may where the model's "
        "own chat template writes calls, and calls one where it does not.",
    )
    max_output_tokens: int | None = Field(
        None, description="Most tokens to generate; without it, what the context leaves."
    )
    top_logprobs: int | None = Field(
        0,
        description="Alternatives to report with each token, 0 to 20; only with "
        f"`include: [{LOGPROBS}]`.",
    )
    text: TextFields | None = Field(None, description="What the text has to be.")
    reasoning: Reasoning | None = Field(None, description="How the model thinks.")
    truncation: Literal["auto", "disabled"] | None = Field(
        "disabled",
        description="`auto` leaves the oldest turns out where all do not fit the context; "
        "`disabled` refuses.",
    )
    metadata: Metadata | None = Field(None, description="Labels, given back as they came.")
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
        description=f"`{LOGPROBS}` reports log probabilities. The others make no difference: "
        "reasoning is never encrypted here, and there are no such items.",
    )
    service_tier: _Label | None = Field(
        None, description="Makes no difference: all requests are served alike, as `default`."
    )
    user: _Label | None = Field(None, description="Makes no difference.")
    safety_identifier: _Label | None = Field(
        None, description="Makes no difference; given back as it came."
    )
    prompt_cache_key: _Label | None = Field(
        None,
        description="Makes no difference, as every prompt looks for its beginning in the cache; "
        "given back as it came.",
    )
    prompt_cache_options: PromptCacheOptions | None = Field(
        None, description="Only `prewarm` makes a difference."
    )
    max_tool_calls: int | None = Field(
        None,
        description="Limits the tools that a server runs, which this one has none of; given back "
        "as it came.",
    )
    max_tokens: int | None = Field(None, description="Only `null`: see `max_output_tokens`.")
    response_format: None = Field(None, description="Only `null`: see `text.format`.")

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, fields: Any) -> Any:
        """Refuse what would be lost, before anything else looks at it."""
        if isinstance(fields, dict):
            for name in _UNSUPPORTED:
                if fields.get(name) is not None:
                    raise _refused(name, "is not supported here")
            for name, instead in _INSTEAD.items():
                if fields.get(name) is not None:
                    raise _refused(name, f"is not a field of this route; use {instead}")
            refuse_unsupported(fields.get("input"))
            refuse_hosted_tools(fields.get("tools"))
        return fields

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def generates(self) -> bool:
        options = self.prompt_cache_options
        return self.generate is not False and not (options is not None and options.prewarm)

    @property
    def includes_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def to_items(self, key: str) -> tuple[Item, ...]:
        """Return the input in the form in which it is kept.

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
        """Return the engine's form.

        Args:
            messages: the whole conversation, instructions included.

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
        """Refuse fields that contradict each other.

        Raises:
            InvalidRequest: these do, or one is out of range.
        """
        if self.background and not self.is_stored:
            raise InvalidRequest(param="background", reason="needs store")
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise InvalidRequest(
                param="max_output_tokens",
                reason=f"must be at least 1, not {self.max_output_tokens}",
            )
        if not 0 <= (self.top_logprobs or 0) <= MAX_TOP_LOGPROBS:
            raise InvalidRequest(
                param="top_logprobs",
                reason=f"must be 0 to {MAX_TOP_LOGPROBS}, not {self.top_logprobs}",
            )
        if self.max_tool_calls is not None and not 0 < self.max_tool_calls < 2**31:
            raise InvalidRequest(param="max_tool_calls", reason="must be at least 1")

    def echo(self) -> dict[str, Any]:
        """Return what each snapshot of the response shows of the request."""
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
    """A conversation to be put into few words. Unknown fields are skipped."""

    model: _Label | None = Field(
        None, description="The model that is wanted; without it, the one that is served."
    )
    input: _Input = Field(None, description="Text is one turn of the user.")
    instructions: str | None = Field(
        None, description="The system's turn, for the summary; no part of it."
    )
    previous_response_id: _Label | None = Field(
        None, description="The response that the conversation goes on from."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            refuse_unsupported(fields.get("input"))
        return fields

    def to_response_request(self) -> ResponseRequest:
        return ResponseRequest(
            model=self.model,
            input=self.input,
            instructions=self.instructions,
            previous_response_id=self.previous_response_id,
        )


class InputTokens(BaseModel):
    """The size of a prompt."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


def _refused(param: str, reason: str) -> RequestRefused:
    return RequestRefused(
        ErrorInfo(code="invalid_request", message=f"{param}: {reason}", param=param)
    )
