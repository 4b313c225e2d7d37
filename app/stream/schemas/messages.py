"""Messages from a client on `WS /v1/stream`: one JSON object a frame, tagged by `type`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from app.schemas.request_fields import DEFAULT_MAX_TOKENS, MAX_MESSAGES, Metadata
from app.schemas.sampling import SamplingFields
from app.schemas.wire_model import WireModel
from streaming import ChatMessage, ChatPrompt, GenerationRequest, TextPrompt, TokenPrompt
from streaming.errors import InvalidRequest

_MAX_NAME_CHARS = 256

StreamId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class MessageFields(WireModel):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateMessage(SamplingFields):
    """Start a generation from either `prompt` or `messages`. `null` means absent."""

    type: Literal["generate"]
    id: StreamId | None = None
    prompt: str | Annotated[list[int], Field(fail_fast=True)] | None = None
    messages: (
        Annotated[list[MessageFields], Field(fail_fast=True, max_length=MAX_MESSAGES)] | None
    ) = None
    model: Annotated[str, Field(max_length=_MAX_NAME_CHARS)] | None = None
    logprobs: int | None = Field(
        None,
        description="Number of alternatives for each token; 0 returns the chosen token only.",
    )
    return_token_ids: bool = False
    metadata: Metadata | None = None

    def to_request(self, *, caller: str) -> GenerationRequest:
        """Return the message as a request to the engine.

        Raises:
            InvalidRequest: a value is out of range, or fields conflict.
        """
        return self.to_generation_request(
            self._to_prompt(),
            self.to_sampling_params(
                default_max_tokens=DEFAULT_MAX_TOKENS if self.messages is None else None,
                logprobs=self.logprobs,
            ),
            caller=caller,
            model=self.model,
            metadata=self.metadata or {},
        )

    def _to_prompt(self) -> TextPrompt | TokenPrompt | ChatPrompt:
        if self.messages is not None:
            if self.prompt is not None:
                raise InvalidRequest(
                    param="messages", reason="cannot be combined with prompt; give one of them"
                )
            return ChatPrompt(
                tuple(ChatMessage(message.role, message.content) for message in self.messages)
            )
        if self.prompt is None:
            raise InvalidRequest(param="prompt", reason="is required unless messages are given")
        if isinstance(self.prompt, str):
            return TextPrompt(self.prompt)
        return TokenPrompt(tuple(self.prompt))


class CancelMessage(WireModel):
    """Cancel a stream of this socket at the next engine step."""

    type: Literal["cancel"]
    id: StreamId


class ResumeMessage(WireModel):
    """Replay the frames after a cursor, then stream on. `id` is the stream's id on this socket."""

    type: Literal["resume"]
    id: StreamId | None = None
    generation_id: Annotated[str, Field(max_length=_MAX_NAME_CHARS)]
    after: Annotated[int, Field(ge=-1)]
    return_token_ids: bool = False
    logprobs: bool = False


ClientMessage = Annotated[
    GenerateMessage | CancelMessage | ResumeMessage, Field(discriminator="type")
]
CLIENT_MESSAGE: TypeAdapter[GenerateMessage | CancelMessage | ResumeMessage] = TypeAdapter(
    ClientMessage
)
CLIENT_MESSAGE_TYPES = ("generate", "cancel", "resume")
