"""Writes the answers of `/v1/chat/completions`, whole or chunk by chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import assert_never

from app.openai.choice_writer import NO_TOKENS, ChoiceWriter, outcome_of, text_of, tokens_of
from app.openai.schemas.chat import (
    CalledFunction,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatFinishReason,
    ChatMessageAnswer,
    ChatRequest,
    ChatToolCall,
    ChunkChoice,
    FunctionDelta,
    ToolCallDelta,
)
from app.schemas.logprobs import ChatLogprobs
from app.schemas.usage import Usage
from streaming import (
    AnswerText,
    AsyncEngine,
    Delta,
    Ended,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generation,
    OutputParser,
    Piece,
    ReasoningText,
    Tokens,
    ToolArguments,
    ToolCallEnded,
    ToolCallStarted,
)

_FINISH_REASONS: dict[FinishReason, ChatFinishReason] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "tool_calls",
}
"""`CANCELLED` is missing: no client is left to read its answer."""
_NUM_CALL_ID_CHARS = 24


class ChatWriter(ChoiceWriter):
    """Writes chat completions.

    The output format of each generation tells how to separate content, reasoning and tool calls.
    """

    id_prefix = "chatcmpl"

    def __init__(
        self, body: ChatRequest, engine: AsyncEngine, generations: Sequence[Generation]
    ) -> None:
        super().__init__(body, engine, generations)
        self._body = body
        self._token_bytes = engine.tokenizer.token_bytes
        self._parsers = [OutputParser(generation.output_format) for generation in generations]
        self._has_begun = [False] * len(generations)

    @property
    def wants_logprobs(self) -> bool:
        """Whether `logprobs` is true."""
        return bool(self._body.logprobs)

    # The whole answer.

    def whole(self) -> str:
        """Return a `chat.completion`."""
        choices = []
        for index, generation in enumerate(self._generations):
            finish_reason = _finish_reason(generation.outcome)
            assert finish_reason is not None, "the generation has finished"
            choice = ChatChoice(
                index=index,
                message=_message(generation),
                logprobs=self._logprobs(generation.tokens),
                finish_reason=finish_reason,
            )
            if self._return_token_ids:
                choice.token_ids = generation.tokens.ids
            choices.append(choice)
        return ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._model,
            choices=choices,
            usage=self._usage(),
        ).model_dump_json(exclude_unset=True)

    # The stream.

    def chunks(self, index: int, events: Sequence[Event]) -> Iterator[str]:
        """Yield the role first, then one chunk for each piece, and the finish reason last."""
        if not any(isinstance(event, Delta | Ended) for event in events):
            return
        if not self._has_begun[index]:
            self._has_begun[index] = True
            yield self._chunk(index, ChatDelta(role="assistant", content="", refusal=None))
        outcome = outcome_of(events)
        parser = self._parsers[index]
        pieces = parser.feed(text_of(events))
        if outcome is not None:
            pieces += parser.flush()
        tokens = tokens_of(events)
        deltas = list(self._deltas(self._generations[index], pieces))
        if not deltas and tokens and self.include_empty_deltas:
            deltas = [ChatDelta()]
        for delta in deltas:
            yield self._chunk(index, delta, tokens=tokens)
            tokens = NO_TOKENS  # report them once, with the first piece
        if (finish_reason := _finish_reason(outcome)) is not None:
            yield self._chunk(index, ChatDelta(), finish_reason=finish_reason)

    def _deltas(self, generation: Generation, pieces: Iterable[Piece]) -> Iterator[ChatDelta]:
        for piece in pieces:
            match piece:
                case AnswerText(text):
                    yield ChatDelta(content=text)
                case ReasoningText(text):
                    yield ChatDelta(reasoning_content=text)
                case ToolCallStarted(call, name):
                    first = ToolCallDelta(
                        index=call,
                        id=call_id(generation, call),
                        type="function",
                        function=FunctionDelta(name=name, arguments=""),
                    )
                    yield ChatDelta(tool_calls=[first])
                case ToolArguments(call, text):
                    next_part = ToolCallDelta(index=call, function=FunctionDelta(arguments=text))
                    yield ChatDelta(tool_calls=[next_part])
                case ToolCallEnded():
                    pass  # implied by the next call or the finish reason
                case _:
                    assert_never(piece)

    def _chunk(
        self,
        index: int,
        delta: ChatDelta,
        *,
        tokens: Tokens = NO_TOKENS,
        finish_reason: ChatFinishReason | None = None,
    ) -> str:
        choice = ChunkChoice(
            index=index,
            delta=delta,
            logprobs=self._logprobs(tokens) if tokens else None,
            finish_reason=finish_reason,
        )
        if self._return_token_ids:
            choice.token_ids = tokens.ids
        chunk = self._completion_chunk([choice])
        if self._include_usage:
            chunk.usage = None  # null in every chunk but the last
        return chunk.model_dump_json(exclude_unset=True)

    def _usage_chunk(self, usage: Usage) -> str:
        chunk = self._completion_chunk([])
        chunk.usage = usage
        return chunk.model_dump_json(exclude_unset=True)

    def _completion_chunk(self, choices: list[ChunkChoice]) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            choices=choices,
        )

    def _logprobs(self, tokens: Tokens) -> ChatLogprobs | None:
        if not self.wants_logprobs:
            return None
        return ChatLogprobs.of(tokens, token_text=self._token_text, token_bytes=self._token_bytes)


def call_id(generation: Generation, index: int) -> str:
    """Return the id of a generation's tool call: the same each time the log is read.

    A hash hides the generation's id, which would let anyone who sees the call resume the stream.
    """
    digest = hashlib.sha256(f"{generation.generation_id}/{index}".encode()).hexdigest()
    return f"call_{digest[:_NUM_CALL_ID_CHARS]}"


def _message(generation: Generation) -> ChatMessageAnswer:
    content = reasoning = ""
    calls: list[ChatToolCall] = []
    parser = OutputParser(generation.output_format)
    for piece in (*parser.feed(generation.text), *parser.flush()):
        match piece:
            case AnswerText(text):
                content += text
            case ReasoningText(text):
                reasoning += text
            case ToolCallStarted(index, name):
                function = CalledFunction(name=name, arguments="")
                calls.append(
                    ChatToolCall(id=call_id(generation, index), type="function", function=function)
                )
            case ToolArguments(index, text):
                calls[index].function.arguments += text
            case ToolCallEnded():
                pass
            case _:
                assert_never(piece)
    message = ChatMessageAnswer(
        role="assistant", content=None if calls and not content else content, refusal=None
    )
    if reasoning:
        message.reasoning_content = reasoning
    if calls:
        message.tool_calls = calls
    return message


def _finish_reason(outcome: Finished | Failed | None) -> ChatFinishReason | None:
    return _FINISH_REASONS[outcome.finish_reason] if isinstance(outcome, Finished) else None
