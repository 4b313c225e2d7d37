"""Turn a request into a sequence for the engine, or refuse it, before it is queued."""

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
    """A request as the engine needs it.

    Attributes:
        output_format: what an `OutputParser` is to look for in the answer.
        matcher: holds the answer to the request's grammar, if there is one; its own.
        prompt_texts: of each token, where the prompt's log probabilities are wanted.
    """

    request: GenerationRequest
    prompt_ids: list[int]
    output_format: OutputFormat
    matcher: GrammarMatcher | None
    prompt_texts: tuple[str, ...]


class Admission:
    """Checks requests against the served model; knows nothing of load.

    Args:
        backend: serves it.
        max_priority: the highest priority that may be asked for.
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
        """Refuse what can be refused without tokenising; cheap enough for the event loop.

        Raises:
            ModelNotFound: another model is asked for.
            PromptTooLong: so many characters, or token ids, cannot fit the context.
            InvalidRequest: the prompt is empty or no Unicode, or a field does not fit the model.
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
                reason=f"{info.model_id} has no chat template; send a prompt instead",
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
                    reason=f"{info.model_id} cannot be held to a grammar",
                )
            _check_unicode("response_format", (params.grammar.source,))
        self.check_token_ids("logit_bias", params.logit_bias)
        self.check_token_ids("stop_token_ids", params.stop_token_ids)
        # A grammar goes before `min_tokens`.
        if params.min_tokens and params.grammar is None:
            self._check_banned(params.stop_token_ids)
        if isinstance(prompt, TokenPrompt):
            self._check_length(prompt, prompt.token_ids)
            self.check_token_ids(prompt.param, prompt.token_ids)

    def prepare(
        self, requests: Sequence[GenerationRequest], *, checkpoint: Callable[[], None]
    ) -> list[PreparedRequest]:
        """Return checked requests with their prompts as ids; slow, so run it on a worker thread.

        Requests that share a prompt have it tokenised once, and a grammar compiled once.

        Args:
            checkpoint: called before each prompt; what it raises ends the rest.

        Raises:
            PromptTooLong: there is no room for one token of an answer.
            InvalidRequest: a prompt or a grammar cannot be served, and why.
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
        """Return the prompt as ids; slow on long prompts, so run it on a worker thread.

        Raises:
            PromptTooLong: there is no room for one token of an answer.
            InvalidRequest: the chat template refuses the messages, or tools cannot be offered.
        """
        encoded = self.encode_unbounded(prompt)
        if not encoded.token_ids:
            raise InvalidRequest(param=prompt.param, reason="has no tokens")
        self._check_length(prompt, encoded.token_ids)
        return encoded

    def encode_unbounded(self, prompt: Prompt) -> EncodedPrompt:
        """Return the same, whether or not the context has room for it.

        Raises:
            InvalidRequest: the chat template refuses the messages, or tools cannot be offered.
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
        """Return what the answer has to belong to; None is any text.

        Raises:
            InvalidRequest: text of the form that is asked for cannot be told from a call.
        """
        prompt, output_format = request.prompt, encoded.output_format
        text = request.params.grammar
        if not isinstance(prompt, ChatPrompt) or output_format.tools is None:
            if text is None or output_format.reasoning is None:
                return text
            return AnswerGrammar(output_format=output_format, text=text)
        choice, syntax = prompt.tool_choice, output_format.tools
        is_asked_for = prompt.parallel_tool_calls
        if is_asked_for is None:
            is_asked_for = not syntax.prefers_single
        is_single = not (is_asked_for and syntax.allows_several)
        must_call = choice.mode is ToolMode.REQUIRED
        if must_call:
            text = None
        elif text is not None:
            if syntax.trigger.startswith("{"):
                raise InvalidRequest(
                    param="response_format",
                    reason="cannot stand beside tools: this model's calls look like JSON answers",
                )
            # What a text of that form quotes is no call.
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
        """Return a matcher for each of `count` texts; may be slow, so run it on a worker thread.

        Raises:
            InvalidRequest: the grammar cannot be compiled, and why.
        """
        assert self._grammars is not None, "`check` refuses grammars that nobody compiles"
        return self._grammars.compile(constraint, count=count)

    def to_sequence(self, prepared: PreparedRequest, *, timeout_s: float) -> EngineSequence:
        """Return what the engine is to run, with a log of its own, which is submitted now.

        Args:
            timeout_s: it ends then, or earlier where the request says so.
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
            params=self.resolve(request.params, num_prompt_tokens=len(prompt_ids)),
            eos_token_ids=self._info.eos_token_ids,
            decode=self._tokenizer.decode,
            deadline_at=now + timeout_s,
            priority=request.priority,
            matcher=prepared.matcher,
            prompt_texts=prepared.prompt_texts,
        )

    def resolve(self, params: SamplingParams, *, num_prompt_tokens: int) -> SamplingParams:
        """Fill in what the request left open: a length that the context allows, and a seed."""
        room = self._info.max_model_len - num_prompt_tokens
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        return replace(
            params,
            max_tokens=max_tokens,
            min_tokens=min(params.min_tokens, max_tokens),
            seed=secrets.randbits(63) if params.seed is None else params.seed,
        )

    def decode(self, param: str, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out.

        Raises:
            InvalidRequest: the model does not have one of them.
        """
        self.check_token_ids(param, token_ids)
        return self._tokenizer.decode(token_ids)

    def check_token_ids(self, param: str, token_ids: Iterable[int]) -> None:
        """Refuse ids that the model does not have.

        Raises:
            InvalidRequest: there is one.
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
                param="tools", reason=f"{self._info.model_id} cannot be held to their schemas"
            )
        if not prompt.continue_final_message:
            return
        if prompt.add_generation_prompt:
            raise InvalidRequest(
                param="continue_final_message", reason="excludes add_generation_prompt"
            )
        final = prompt.messages[-1]
        if final.role != "assistant" or final.tool_calls:
            raise InvalidRequest(
                param="continue_final_message",
                reason="the final message must be a text of the assistant's",
            )

    def _check_banned(self, stop_token_ids: frozenset[int]) -> None:
        if len(stop_token_ids | self._info.eos_token_ids) >= self._info.vocab_size:
            raise InvalidRequest(
                param="stop_token_ids", reason="together with min_tokens, they leave no token"
            )

    def _check_length(self, prompt: Prompt, prompt_ids: Sequence[int]) -> None:
        limit = self._info.max_model_len - 1
        if len(prompt_ids) > limit:
            raise PromptTooLong(size=len(prompt_ids), limit=limit, param=prompt.param)


def _output_format(constraint: OutputConstraint | None, encoded: EncodedPrompt) -> OutputFormat:
    """Return the format that the answer is held to, or else the one that the prompt sets."""
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
