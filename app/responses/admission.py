"""Submits a response's request to the engine: truncated if it may be, or as a warm-up."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace

from app.responses.dialect import translate_errors
from app.responses.truncation import shorten
from streaming import (
    AsyncEngine,
    ChatPrompt,
    Finished,
    FinishReason,
    Generation,
    GenerationRequest,
    SamplingParams,
)
from streaming.errors import InvalidRequest, ModelNotFound, PromptTooLong


async def submit(
    engine: AsyncEngine, request: GenerationRequest, *, truncates: bool = False
) -> Generation:
    """Submit a request and return its log.

    Args:
        engine: generates.
        request: has a chat prompt.
        truncates: drop the oldest turns of a prompt that does not fit the context.

    Raises:
        StreamingError: the request cannot be served, or not now.
    """
    with translate_errors():
        while True:
            try:
                return await engine.submit(request)
            except PromptTooLong as error:
                shorter = shorten(request, error) if truncates else None
                if shorter is None:
                    raise
                request = shorter


async def warm_up(engine: AsyncEngine, request: GenerationRequest) -> Generation:
    """Prefill a prompt, so that a later prompt with the same beginning hits the prefix cache.

    Returns the log of the prefill, which has at most one token; its text is not part of the
    response. An empty prompt gets a log that has ended already, and so does one that the chat
    template refuses because no user has spoken.

    Raises:
        StreamingError: the request cannot be served, or not now.
    """
    prompt = request.prompt
    assert isinstance(prompt, ChatPrompt)
    served = engine.info.model_id
    if request.model not in (None, served):
        raise ModelNotFound(model=request.model or "", served=served)
    if prompt.messages:
        prefill = replace(
            request,
            prompt=replace(prompt, add_generation_prompt=False),
            params=SamplingParams(max_tokens=1),
        )
        try:
            return await submit(engine, prefill)
        except InvalidRequest as error:
            if error.param != "input":
                raise
    now = time.monotonic()
    generation = Generation(
        generation_id=f"warm_up_{secrets.token_hex(8)}",
        caller=request.caller,
        model=served,
        created_at=time.time(),
        submitted_at=now,
        prompt_tokens=0,
    )
    generation.end(Finished(FinishReason.STOP, now))
    return generation
