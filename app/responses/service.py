"""Turns requests into responses: resolves the conversation, submits the prompt to the engine.

`ResponseRegistry` owns the responses from then on.
"""

from __future__ import annotations

import asyncio
import secrets
from functools import partial

from app.errors import RequestRefused
from app.responses.admission import submit, warm_up
from app.responses.compaction import CompactedObject, to_compacted, to_summary_request
from app.responses.context import Context
from app.responses.conversation import to_messages
from app.responses.dialect import ReasoningDialect, translate_errors
from app.responses.references import resolve
from app.responses.refusals import previous_not_found
from app.responses.registry import ResponseRegistry
from app.responses.response import AnyResponse, LiveResponse
from app.responses.schemas.objects import Item
from app.responses.schemas.request import CompactRequest, ResponseRequest
from app.responses.snapshot import ResponseHead
from streaming import AsyncEngine, Failed, GenerationRequest
from streaming.errors import InvalidRequest


class ResponseService:
    """Creates responses.

    Args:
        engine: generates them.
        registry: owns them, and finds those that a request continues.
        reasoning_dialect: selects the event types of reasoning.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        registry: ResponseRegistry,
        *,
        reasoning_dialect: ReasoningDialect = ReasoningDialect.OPENAI,
    ) -> None:
        self._engine = engine
        self.registry = registry
        self._reasoning_dialect = reasoning_dialect

    async def create(
        self, body: ResponseRequest, *, caller: str, parent: AnyResponse | None = None
    ) -> LiveResponse:
        """Admit a request and return its response, which the engine generates from now on.

        Unless it is a background response, subscribe to it before the next await: a response
        without subscribers is cancelled.

        Args:
            body: the request.
            caller: who owns the response.
            parent: the response that `body.previous_response_id` names, if already known.

        Raises:
            StreamingError: the request cannot be served, or not now.
            RequestRefused: the previous response does not exist, or the store cannot be read.
        """
        key = secrets.token_hex(16)
        context, request = await self._prepare(body, key=key, caller=caller, parent=parent)
        generation = (
            await submit(self._engine, request, truncates=body.truncation == "auto")
            if body.generates
            else await warm_up(self._engine, request)
        )
        response = LiveResponse(
            head=ResponseHead(
                key=key,
                echo=body.echo(),
                token_text=self._engine.tokenizer.token_text,
                token_bytes=self._engine.tokenizer.token_bytes,
                is_background=bool(body.background),
                is_warm_up=not body.generates,
                reports_logprobs=body.includes_logprobs,
                reasoning_dialect=self._reasoning_dialect,
            ),
            caller=caller,
            generation=generation,
            context=context,
            is_stored=body.is_stored,
        )
        self.registry.add(response)
        return response

    async def count_input_tokens(self, body: ResponseRequest, *, caller: str) -> int:
        """Return the number of tokens in a request's prompt, which may exceed the context.

        Raises:
            StreamingError: the request could not be served.
            RequestRefused: the previous response does not exist, or the store cannot be read.
        """
        key = secrets.token_hex(16)
        _, request = await self._prepare(body, key=key, caller=caller, parent=None)
        with translate_errors():
            return len(await self._engine.tokenize(request))

    async def compact(self, body: CompactRequest, *, caller: str) -> CompactedObject:
        """Return a conversation with the model's summary in place of its answers; stores nothing.

        Raises:
            StreamingError: the request cannot be served, or not now, or has failed.
            RequestRefused: the previous response does not exist, or the store cannot be read.
        """
        context, request = await self._prepare(
            body.to_response_request(), key=secrets.token_hex(16), caller=caller, parent=None
        )
        generation = await submit(self._engine, to_summary_request(request))
        with self._engine.subscribe(generation) as reader:
            outcome = await reader.wait_ended()
        if isinstance(outcome, Failed):
            raise outcome.error
        return to_compacted(context.items, generation)

    async def _prepare(
        self, body: ResponseRequest, *, key: str, caller: str, parent: AnyResponse | None
    ) -> tuple[Context, GenerationRequest]:
        """Return the whole context, and the engine's request."""
        body.check()
        if parent is None and body.previous_response_id is not None:
            parent = await self._find_parent(body.previous_response_id, caller)
        if parent is not None and not parent.is_ended:
            raise InvalidRequest(
                param="previous_response_id", reason="has not ended yet; wait for its end"
            )
        find = partial(self.registry.find, caller=caller)
        own = await resolve(body.to_items(key), parent=parent, find=find)
        if parent is None:
            context = Context.of((), own)
        else:
            context = await asyncio.to_thread(_extend, parent, own)
        messages = to_messages(context, instructions=body.instructions)
        if body.generates and not messages:
            raise InvalidRequest(param="input", reason="is required")
        with translate_errors():
            request = body.to_request(messages, caller=caller)
        return context, request

    async def _find_parent(self, response_id: str, caller: str) -> AnyResponse:
        try:
            return await self.registry.find(response_id, caller=caller)
        except RequestRefused as error:
            if error.info.code != "response_not_found":
                raise
            raise previous_not_found(response_id) from error


def _extend(parent: AnyResponse, own: tuple[Item, ...]) -> Context:
    return Context.of(parent.conversation(), own)
