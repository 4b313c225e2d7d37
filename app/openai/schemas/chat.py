"""Request and answers of `POST /v1/chat/completions`: OpenAI's fields and a few of our own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from app.openai.schemas.chat_messages import Message, TextPart, to_chat_messages
from app.openai.schemas.chat_tools import ToolChoiceField, ToolFields, to_tool_choice
from app.openai.schemas.choices import ChoiceFields, Name
from app.schemas.logprobs import ChatLogprobs
from app.schemas.request_fields import MAX_MESSAGES, Metadata, ReasoningEffort
from app.schemas.usage import Usage
from app.schemas.wire_model import WireModel
from streaming import ChatPrompt, GenerationRequest, ToolChoice, ToolMode
from streaming.errors import InvalidRequest

MAX_TOOLS = 128
MAX_PIECES = 4096
"""Most tool calls and content parts in all messages. The event loop validates that many in 25 ms
(AMD EPYC, Zen 4)."""


def _check_num_pieces(messages: Any) -> Any:
    """Count the tool calls and content parts of all messages before pydantic validates each."""
    if isinstance(messages, list):
        num_pieces = sum(
            len(pieces)
            for message in messages
            if isinstance(message, dict)
            for pieces in (message.get("tool_calls"), message.get("content"))
            if isinstance(pieces, list)
        )
        if num_pieces > MAX_PIECES:
            raise PydanticCustomError(
                "too_many_pieces",
                "must have at most {most} tool calls and content parts in total (got {actual})",
                {"most": MAX_PIECES, "actual": num_pieces},
            )
    return messages


Messages = Annotated[
    list[Message],
    Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES),
    BeforeValidator(_check_num_pieces),
]


class PromptFields(WireModel):
    """Fields that shape the prompt, next to the messages."""

    tools: Annotated[list[ToolFields], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = Field(
        None, description="Functions that the model may call."
    )
    tool_choice: ToolChoiceField | None = Field(
        None,
        description="`none`, `auto`, `required`, a named function, or `allowed_tools`. The "
        "arguments of a call always match the schema of the tool.",
    )
    parallel_tool_calls: bool | None = Field(
        None,
        description="Whether the answer may call several tools. The default is true if the model's "
        "own chat template writes tool calls, and false otherwise.",
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Extra variables for the model's chat template."
    )
    reasoning_effort: ReasoningEffort | None = Field(
        None,
        description="Passed to the chat template as its variable `reasoning_effort`. `none` also "
        "sets `enable_thinking` to false. No effect if the template reads neither variable.",
    )
    add_generation_prompt: bool | None = Field(
        None,
        description="Whether to end the prompt with the start of the assistant's turn. The default "
        "is true, or false with `continue_final_message`.",
    )
    continue_final_message: bool | None = Field(
        False,
        description="Whether the answer continues the last message, which must be the assistant's.",
    )

    def to_prompt(self, messages: Sequence[Message]) -> ChatPrompt:
        """Return the prompt for the engine.

        Raises:
            InvalidRequest: fields contradict each other, or a tool call has arguments that are
                not a JSON object.
        """
        is_continued = bool(self.continue_final_message)
        return ChatPrompt(
            messages=to_chat_messages(messages, param="messages"),
            tools=tuple(
                tool.to_tool(param=f"tools[{index}]") for index, tool in enumerate(self.tools or ())
            ),
            tool_choice=self._to_tool_choice(),
            parallel_tool_calls=self.parallel_tool_calls,
            template_kwargs=self._template_kwargs(),
            add_generation_prompt=(
                not is_continued
                if self.add_generation_prompt is None
                else self.add_generation_prompt
            ),
            continue_final_message=is_continued,
        )

    def _to_tool_choice(self) -> ToolChoice:
        choice = to_tool_choice(self.tool_choice)
        names = {tool.function.name for tool in self.tools or ()}
        if choice.mode is ToolMode.REQUIRED and not names:
            raise InvalidRequest(param="tool_choice", reason="needs tools to choose from")
        if unknown := sorted((choice.names or frozenset()) - names):
            raise InvalidRequest(
                param="tool_choice", reason=f"must name one of the tools (got {unknown[0]!r})"
            )
        return choice

    def _template_kwargs(self) -> str:
        variables = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            variables.setdefault("reasoning_effort", self.reasoning_effort)
            if self.reasoning_effort == "none":
                variables.setdefault("enable_thinking", False)
        if not variables:
            return ""
        try:
            return json.dumps(variables, ensure_ascii=False)
        except RecursionError as error:
            raise InvalidRequest(
                param="chat_template_kwargs", reason="is nested too deeply"
            ) from error


class Prediction(WireModel):
    """OpenAI's predicted output: accepted, and ignored."""

    type: Literal["content"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]


class ChatRequest(PromptFields, ChoiceFields):
    """A conversation to answer. Unknown fields are errors. `null` means the default."""

    messages: Messages = Field(description="The conversation so far.")
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The newer name of `max_tokens`. Give one of the two."
    )
    logprobs: bool | None = Field(False, description="Report the log probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="Alternatives to report for each token, 0 to 20. Needs `logprobs`."
    )
    metadata: Metadata | None = Field(
        None, description="Labels of your own, stored with the generation."
    )
    add_special_tokens: Literal[False] | None = Field(
        None, description="Only `false`: the chat template writes the special tokens."
    )
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = Field(
        None, description='Only `["text"]`.'
    )
    prediction: Prediction | None = Field(
        None, description="No effect. (OpenAI uses it to answer sooner.)"
    )
    prompt_cache_key: Name | None = Field(
        None, description="No effect: prompts with a common prefix always share its cache."
    )
    prompt_cache_retention: Literal["in_memory"] | None = Field(
        None, description="Only `in_memory`."
    )
    safety_identifier: Name | None = Field(
        None, description="No effect: this server moderates nothing."
    )
    service_tier: Literal["auto", "default"] | None = Field(
        None, description="No effect: there is one tier. Use `priority`."
    )
    store: Literal[False] | None = Field(
        None, description="Only `false`: this route stores no answers. `/v1/responses` does."
    )
    verbosity: Literal["medium"] | None = Field(
        None, description="Only `medium`, which has no effect."
    )

    def to_requests(self, *, caller: str, max_choices: int) -> list[GenerationRequest]:
        """Return one engine request for each choice, in the order of the answer.

        Raises:
            InvalidRequest: a value is out of range, or fields contradict each other.
        """
        self.check_choices(num_prompts=1, max_choices=max_choices)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest(param="top_logprobs", reason="needs logprobs to be true")
        with_limit = self.model_copy(update={"max_tokens": self._max_tokens()})
        return self.to_choices(
            [self.to_prompt(self.messages)],
            with_limit.to_sampling_params(
                logprobs=(self.top_logprobs or 0) if self.logprobs else None
            ),
            caller=caller,
            metadata=self.metadata,
        )

    def _max_tokens(self) -> int | None:
        if self.max_completion_tokens is None:
            return self.max_tokens
        if self.max_tokens not in (None, self.max_completion_tokens):
            raise InvalidRequest(
                param="max_completion_tokens",
                reason=f"must equal max_tokens, or be given without it "
                f"(got {self.max_completion_tokens} and {self.max_tokens})",
            )
        return self.max_completion_tokens


# Answers.

ChatFinishReason = Literal["stop", "length", "tool_calls"]


class CalledFunction(BaseModel):
    """The function of a tool call."""

    name: str
    arguments: str = Field(
        description="A JSON object as a string. It is incomplete if the answer was cut off."
    )


class ChatToolCall(BaseModel):
    """A tool call of the answer."""

    id: str = Field(examples=["call_5f1c8c0b7b6d4e2f9a3c1d20"])
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessageAnswer(BaseModel):
    """The message of a choice."""

    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="Null if the answer has only tool calls.")
    refusal: None = Field(None, description="Always null.")
    reasoning_content: str | None = Field(
        None, description="The model's reasoning. Absent if there is none."
    )
    tool_calls: list[ChatToolCall] | None = Field(
        None, description="Absent if the model called no tool."
    )


class ChatChoice(BaseModel):
    """One of the `n` answers."""

    index: int
    message: ChatMessageAnswer
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    token_ids: list[int] | None = Field(None, description="Only with `return_token_ids`.")


class ChatCompletion(BaseModel):
    """The whole answer."""

    id: str = Field(examples=["chatcmpl-4Ef0p3Wl2Xw"])
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="Unix time in seconds.")
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(BaseModel):
    """A part of a function call: its name first, then pieces of its arguments."""

    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """A part of a tool call. The first part has the id and the name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(BaseModel):
    """What a chunk adds to the message of a choice."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(BaseModel):
    """A choice as one chunk reports it."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    token_ids: list[int] | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
