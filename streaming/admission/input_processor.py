"""Validates requests against the model and turns them into sequences for the engine.

`AdmissionController` calls it: `check` on the event loop, and the slow methods on worker threads.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import assert_never

from streaming.backend import Backend, EncodedPrompt
from streaming.chat.format import may_call_tools
from streaming.chat.messages import MAX_PARALLEL_CALLS, ToolMode, check_tools
from streaming.chat.output_parser import OutputFormat
from streaming.detokenizer import texts_of
from streaming.errors import InvalidRequest, ModelNotFound, PromptTooLong
from streaming.log.generation import Generation
from streaming.output_constraint import AnswerGrammar, GrammarMatcher, OutputConstraint
from streaming.request import ChatPrompt, GenerationRequest, Prompt, TextPrompt, TokenPrompt
from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence as EngineSequence


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request with its prompt tokenized and its grammar compiled.

    Attributes:
        request: the original request.
        prompt_ids: token ids of the prompt.
        output_format: the markup that the `OutputParser` parses in the answer.
        matcher: constrains the answer to the request's grammar, if it has one. Not shared.
        prompt_texts: the text of each prompt token, if the request asks for prompt log
            probabilities; empty otherwise.
    """

    request: GenerationRequest
    prompt_ids: list[int]
    output_format: OutputFormat
    matcher: GrammarMatcher | None
    prompt_texts: tuple[str, ...]


class InputProcessor:
    """Validates, tokenizes and converts requests. `Capacity` checks the load.

    Args:
        backend: the served model with its tokenizer and grammar compiler.
        max_priority: the highest priority that a request may have.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_priority: int = GenerationRequest.max_priority,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_priority = max_priority
        self._clock = clock
        self._info = backend.info
        self._tokenizer = backend.tokenizer
        self._grammars = backend.grammars

    def check(self, request: GenerationRequest) -> None:
        """Validate all that needs no tokenizing; cheap enough for the event loop.

        Raises:
            ModelNotFound: the request names another model.
            PromptTooLong: the characters or token ids cannot fit the context.
            InvalidRequest: the prompt is empty or not Unicode, or a field does not fit the model.
        """
        info, prompt, params = self._info, request.prompt, request.params
        if request.model is not None and request.model != info.model_id:
            raise ModelNotFound(model=request.model, served=info.model_id)
        if request.priority > self._max_priority:
            raise InvalidRequest(
                param="priority",
                reason=f"must be at most {self._max_priority} on this server "
                f"(got {request.priority})",
            )
        if isinstance(prompt, ChatPrompt) and not info.has_chat_template:
            raise InvalidRequest(
                param=prompt.param,
                reason=f"{info.model_id} has no chat template; send a text prompt instead",
            )
        if _is_empty(prompt):
            raise InvalidRequest(param=prompt.param, reason="must not be empty")
        num_chars = sum(len(text) for text in prompt.texts)
        max_chars = info.max_model_len * self._tokenizer.max_chars_per_token
        if num_chars > max_chars:
            raise PromptTooLong(
                size=num_chars, limit=max_chars, unit="characters", param=prompt.param
            )
        _check_unicode(prompt.param, prompt.texts)
        if isinstance(prompt, ChatPrompt):
            self._check_chat(prompt)
        _check_unicode("stop", params.stop)
        if params.grammar is not None:
            if self._grammars is None:
                raise InvalidRequest(
                    param="response_format",
                    reason=f"{info.model_id} does not support structured output",
                )
            _check_unicode("response_format", (params.grammar.source,))
        self.check_token_ids("logit_bias", params.logit_bias)
        self.check_token_ids("stop_token_ids", params.stop_token_ids)
        # A grammar takes precedence over `min_tokens`.
        if params.min_tokens and params.grammar is None:
            self._check_banned(params.stop_token_ids)
        if isinstance(prompt, TokenPrompt):
            self._check_length(prompt, prompt.token_ids)
            self.check_token_ids(prompt.param, prompt.token_ids)

    def prepare(
        self, requests: Sequence[GenerationRequest], *, checkpoint: Callable[[], None]
    ) -> list[PreparedRequest]:
        """Return the requests with prompts tokenized and grammars compiled; run it on a thread.

        A prompt that several requests share is tokenized once, and a shared grammar compiled once.

        Args:
            requests: requests that have passed `check`.
            checkpoint: called before each prompt; an exception that it raises ends the work.

        Raises:
            PromptTooLong: a prompt leaves no room for one token of an answer.
            InvalidRequest: a prompt cannot be encoded, or a grammar cannot be compiled.
        """
        encoded: dict[Prompt, EncodedPrompt] = {}
        texts: dict[Prompt, tuple[str, ...]] = {}
        for request in requests:
            checkpoint()
            prompt = request.prompt
            if prompt not in encoded:
                encoded[prompt] = self.encode(prompt)
            if request.params.prompt_logprobs is not None and prompt not in texts:
                texts[prompt] = texts_of(encoded[prompt].token_ids, decode=self._tokenizer.decode)
        constraints = [self.constraint(request, encoded[request.prompt]) for request in requests]
        matchers = {
            constraint: iter(self.compile(constraint, count=count))
            for constraint, count in Counter(constraints).items()
            if constraint is not None
        }
        return [
            PreparedRequest(
                request,
                encoded[request.prompt].token_ids,
                _output_format(constraint, encoded[request.prompt]),
                None if constraint is None else next(matchers[constraint]),
                () if request.params.prompt_logprobs is None else texts[request.prompt],
            )
            for request, constraint in zip(requests, constraints, strict=True)
        ]

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Return the token ids of a prompt; slow for long prompts, so run it on a thread.

        Raises:
            PromptTooLong: the prompt leaves no room for one token of an answer.
            InvalidRequest: the chat template rejects the messages, or the tools are invalid.
        """
        encoded = self.encode_unbounded(prompt)
        if not encoded.token_ids:
            raise InvalidRequest(param=prompt.param, reason="must have at least one token (got 0)")
        self._check_length(prompt, encoded.token_ids)
        return encoded

    def encode_unbounded(self, prompt: Prompt) -> EncodedPrompt:
        """Return the same as `encode`, also for a prompt longer than the context.

        Raises:
            InvalidRequest: the chat template rejects the messages, or the tools are invalid.
        """
        match prompt:
            case TextPrompt(text):
                return EncodedPrompt(self._tokenizer.encode(text))
            case TokenPrompt(token_ids):
                return EncodedPrompt(list(token_ids))
            case ChatPrompt():
                check_tools(prompt.tools, prompt.tool_choice)
                return self._tokenizer.prepare_chat(prompt)
            case _:
                assert_never(prompt)

    def constraint(
        self, request: GenerationRequest, encoded: EncodedPrompt
    ) -> OutputConstraint | None:
        """Return the constraint on the answer; None if any text may be generated.

        Raises:
            InvalidRequest: the model writes tool calls as JSON, so calls and an answer in the
                requested format cannot be told apart.
        """
        prompt, output_format = request.prompt, encoded.output_format
        text = request.params.grammar
        if not isinstance(prompt, ChatPrompt) or output_format.tools is None:
            if text is None or output_format.reasoning is None:
                return text
            return AnswerGrammar(output_format=output_format, text=text)
        choice, syntax = prompt.tool_choice, output_format.tools
        is_parallel = prompt.parallel_tool_calls
        if is_parallel is None:
            is_parallel = not syntax.prefers_single
        is_single = not (is_parallel and syntax.allows_several)
        must_call = choice.mode is ToolMode.REQUIRED
        if must_call:
            text = None
        elif text is not None:
            if syntax.trigger.startswith("{"):
                raise InvalidRequest(
                    param="response_format",
                    reason="cannot be combined with tools: this model writes tool calls as JSON",
                )
            # Only a call at the start counts: the formatted text may quote the trigger.
            syntax = replace(syntax, is_only_at_start=True)
            output_format = replace(output_format, tools=syntax)
        return AnswerGrammar(
            output_format=output_format,
            tools=tuple(
                tool for tool in prompt.tools if choice.names is None or tool.name in choice.names
            ),
            must_call=must_call,
            max_calls=1 if is_single else MAX_PARALLEL_CALLS,
            text=text,
        )

    def compile(self, constraint: OutputConstraint, *, count: int) -> list[GrammarMatcher]:
        """Return `count` matchers for a constraint; may be slow, so run it on a thread.

        Raises:
            InvalidRequest: the grammar cannot be compiled.
        """
        assert self._grammars is not None, "`check` rejects grammars without a compiler"
        return self._grammars.compile(constraint, count=count)

    def to_sequence(self, prepared: PreparedRequest, *, timeout_s: float) -> EngineSequence:
        """Return the sequence for a request, with a new log that counts as submitted now.

        Args:
            prepared: the request, from `prepare`.
            timeout_s: longest time for the request, in seconds; its own timeout may be shorter.
        """
        request, prompt_ids = prepared.request, prepared.prompt_ids
        now = self._clock()
        if request.timeout_s is not None:
            timeout_s = min(timeout_s, request.timeout_s)
        generation = Generation(
            generation_id=f"gen_{secrets.token_urlsafe(24)}",
            caller=request.caller,
            model=self._info.model_id,
            created_at=time.time(),
            submitted_at=now,
            prompt_tokens=len(prompt_ids),
            output_format=prepared.output_format,
            metadata=request.metadata,
        )
        return EngineSequence(
            generation=generation,
            prompt_ids=prompt_ids,
            params=self.resolve_params(request.params, num_prompt_tokens=len(prompt_ids)),
            eos_token_ids=self._info.eos_token_ids,
            decode=self._tokenizer.decode,
            deadline_at=now + timeout_s,
            priority=request.priority,
            matcher=prepared.matcher,
            prompt_texts=prepared.prompt_texts,
        )

    def resolve_params(self, params: SamplingParams, *, num_prompt_tokens: int) -> SamplingParams:
        """Return `params` with `max_tokens` limited to the context and a random seed if unset."""
        room = self._info.max_model_len - num_prompt_tokens
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        return replace(
            params,
            max_tokens=max_tokens,
            min_tokens=min(params.min_tokens, max_tokens),
            seed=secrets.randbits(63) if params.seed is None else params.seed,
        )

    def decode(self, param: str, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens.

        Raises:
            InvalidRequest: an id is outside the vocabulary.
        """
        self.check_token_ids(param, token_ids)
        return self._tokenizer.decode(token_ids)

    def check_token_ids(self, param: str, token_ids: Iterable[int]) -> None:
        """Check that all ids are in the vocabulary.

        Raises:
            InvalidRequest: an id is outside the vocabulary.
        """
        vocab_size = self._info.vocab_size
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequest(
                    param=param, reason=f"token id {token_id} is not in 0..{vocab_size - 1}"
                )

    def _check_chat(self, prompt: ChatPrompt) -> None:
        if self._grammars is None and may_call_tools(prompt):
            raise InvalidRequest(
                param="tools", reason=f"{self._info.model_id} does not support tool schemas"
            )
        if not prompt.continue_final_message:
            return
        if prompt.add_generation_prompt:
            raise InvalidRequest(
                param="continue_final_message",
                reason="cannot be combined with add_generation_prompt",
            )
        final = prompt.messages[-1]
        if final.role != "assistant" or final.tool_calls:
            raise InvalidRequest(
                param="continue_final_message",
                reason="the last message must be from the assistant and have no tool calls",
            )

    def _check_banned(self, stop_token_ids: frozenset[int]) -> None:
        if len(stop_token_ids | self._info.eos_token_ids) >= self._info.vocab_size:
            raise InvalidRequest(
                param="stop_token_ids",
                reason="with min_tokens, every token of the vocabulary is banned",
            )

    def _check_length(self, prompt: Prompt, prompt_ids: Sequence[int]) -> None:
        limit = self._info.max_model_len - 1
        if len(prompt_ids) > limit:
            raise PromptTooLong(size=len(prompt_ids), limit=limit, param=prompt.param)


def _output_format(constraint: OutputConstraint | None, encoded: EncodedPrompt) -> OutputFormat:
    """Return the output format of the constraint, or else the one of the prompt."""
    return (
        constraint.output_format if isinstance(constraint, AnswerGrammar) else encoded.output_format
    )


def _is_empty(prompt: Prompt) -> bool:
    match prompt:
        case TextPrompt(text):
            return not text
        case TokenPrompt(token_ids):
            return not token_ids
        case ChatPrompt():
            return not prompt.messages


def _check_unicode(param: str, texts: Iterable[str]) -> None:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            param=param, reason="is not valid Unicode: it has a lone surrogate"
        ) from error
