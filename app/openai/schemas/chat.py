"""`POST /v1/chat/completions`: OpenAI's fields and ours, and its answers."""

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
"""Calls and parts of all messages: so many take 25 ms to check, on the event loop (Zen 4)."""


def _check_num_pieces(messages: Any) -> Any:
    """Refuse too many calls and parts of all messages together, before time goes into each."""
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
                "Messages should have at most {most} calls and parts together, not {actual}",
                {"most": MAX_PIECES, "actual": num_pieces},
            )
    return messages


Messages = Annotated[
    list[Message],
    Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES),
    BeforeValidator(_check_num_pieces),
]


class PromptFields(WireModel):
    """What becomes the prompt, together with the messages."""

    tools: Annotated[list[ToolFields], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = Field(
        None, description="Functions that the model may call."
    )
    tool_choice: ToolChoiceField | None = Field(
        None,
        description="none, auto, required, a named function, or allowed_tools. A call's arguments "
        "always follow its schema.",
    )
    parallel_tool_calls: bool | None = Field(
        None,
        description="The answer may call several tools. By default it may where the model's own "
        "chat template writes calls, and calls one where it does not.",
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="More variables for the model's chat template."
    )
    reasoning_effort: ReasoningEffort | None = Field(
        None,
        description="For the chat template, as its variable `reasoning_effort`; `none` also sets "
        "`enable_thinking` to false. Makes no difference where the template reads neither.",
    )
    add_generation_prompt: bool | None = Field(
        None,
        description="The prompt ends where the assistant's turn begins; true, unless "
        "`continue_final_message` is.",
    )
    continue_final_message: bool | None = Field(
        False, description="The answer goes on with the last message, which is the assistant's."
    )

    def to_prompt(self, messages: Sequence[Message]) -> ChatPrompt:
        """Return the engine's form.

        Raises:
            InvalidRequest: fields contradict each other, or hold what is no JSON object.
        """
        is_continued = bool(self.continue_final_message)
        begins_turn = self.add_generation_prompt
        return ChatPrompt(
            messages=to_chat_messages(messages, param="messages"),
            tools=tuple(
                tool.to_tool(param=f"tools[{place}]") for place, tool in enumerate(self.tools or ())
            ),
            tool_choice=self._to_tool_choice(),
            parallel_tool_calls=self.parallel_tool_calls,
            template_kwargs=self._template_kwargs(),
            add_generation_prompt=not is_continued if begins_turn is None else begins_turn,
            continue_final_message=is_continued,
        )

    def _to_tool_choice(self) -> ToolChoice:
        choice = to_tool_choice(self.tool_choice)
        names = {tool.function.name for tool in self.tools or ()}
        if choice.mode is ToolMode.REQUIRED and not names:
            raise InvalidRequest(param="tool_choice", reason="is only allowed with tools")
        if unknown := sorted((choice.names or frozenset()) - names):
            raise InvalidRequest(
                param="tool_choice", reason=f"{unknown[0]!r} is not the name of one of the tools"
            )
        return choice

    def _template_kwargs(self) -> str:
        given = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            given.setdefault("reasoning_effort", self.reasoning_effort)
            if self.reasoning_effort == "none":
                given.setdefault("enable_thinking", False)
        if not given:
            return ""
        try:
            return json.dumps(given, ensure_ascii=False)
        except RecursionError as error:
            raise InvalidRequest(
                param="chat_template_kwargs", reason="is nested too deeply"
            ) from error


class Prediction(WireModel):
    type: Literal["content"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]


class ChatRequest(PromptFields, ChoiceFields):
    """A conversation to be answered. Unknown fields are errors; `null` means the default."""

    messages: Messages = Field(description="The conversation so far.")
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The newer name of `max_tokens`."
    )
    logprobs: bool | None = Field(False, description="Report log probabilities of the tokens.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(
        None, description="Alternatives to report with each token, 0 to 20; only with `logprobs`."
    )
    metadata: Metadata | None = Field(
        None, description="The caller's own labels, kept with the generation."
    )
    add_special_tokens: Literal[False] | None = Field(
        None, description="Only `false`: the chat template writes what belongs there."
    )
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = Field(
        None, description='Only `["text"]`.'
    )
    prediction: Prediction | None = Field(
        None, description="Makes no difference: a guess at the answer, which only saves time."
    )
    prompt_cache_key: Name | None = Field(
        None, description="Makes no difference: prompts that begin alike share their cache anyway."
    )
    prompt_cache_retention: Literal["in_memory"] | None = Field(
        None, description="Only `in_memory`."
    )
    safety_identifier: Name | None = Field(
        None, description="Makes no difference: nothing is moderated here."
    )
    service_tier: Literal["auto", "default"] | None = Field(
        None, description="Makes no difference: there is one tier. See `priority`."
    )
    store: Literal[False] | None = Field(
        None, description="Only `false`: answers are not kept for later requests."
    )
    verbosity: Literal["medium"] | None = Field(
        None, description="Only `medium`, which is no difference."
    )

    def to_requests(self, *, caller: str, max_choices: int) -> list[GenerationRequest]:
        """Return one request for each choice, in the order of the answer.

        Raises:
            InvalidRequest: a value is out of range, or fields contradict each other.
        """
        self.check_choices(num_prompts=1, max_choices=max_choices)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest(param="top_logprobs", reason="is only allowed with logprobs")
        limited = self.model_copy(update={"max_tokens": self._max_tokens()})
        return self.to_choices(
            [self.to_prompt(self.messages)],
            limited.to_sampling_params(
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
                param="max_completion_tokens", reason="contradicts max_tokens: give one of them"
            )
        return self.max_completion_tokens


# Answers.

ChatFinishReason = Literal["stop", "length", "tool_calls"]


class CalledFunction(BaseModel):
    name: str
    arguments: str = Field(description="A JSON object, as text; cut where the answer is.")


class ChatToolCall(BaseModel):
    id: str = Field(examples=["call_5f1c8c0b7b6d4e2f9a3c1d20"])
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessageAnswer(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="Null where there are only calls.")
    refusal: None = Field(None, description="Always null.")
    reasoning_content: str | None = Field(
        None, description="What the model thought; left out where it did not."
    )
    tool_calls: list[ChatToolCall] | None = Field(
        None, description="Left out where nothing was called."
    )


class ChatChoice(BaseModel):
    index: int
    message: ChatMessageAnswer
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    token_ids: list[int] | None = Field(None, description="Only with `return_token_ids`.")


class ChatCompletion(BaseModel):
    """The whole answer."""

    id: str = Field(examples=["chatcmpl-4Ef0p3Wl2Xw"])
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="Unix seconds.")
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(BaseModel):
    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """A call begins with its id and name; pieces of its arguments follow."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    token_ids: list[int] | None = None


class ChatCompletionChunk(BaseModel):
    """A piece of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
