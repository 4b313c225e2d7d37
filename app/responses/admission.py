"""Getting a log for a request."""

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
    """Submit a request.

    Args:
        truncates: leave the oldest turns out where all do not fit.

    Raises:
        StreamingError: it cannot be served, or not now.
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
    """Have the model read a prompt, so that the next one that begins alike finds it in the cache.

    The log that is returned has at most one token, which is not to be shown. It has ended already
    where there is nothing to read, or the template wants a user before it writes anything.

    Raises:
        StreamingError: the request cannot be served, or not now.
    """
    prompt = request.prompt
    assert isinstance(prompt, ChatPrompt)
    served = engine.info.model_id
    if request.model not in (None, served):
        raise ModelNotFound(model=request.model or "", served=served)
    if prompt.messages:
        reading = replace(
            request,
            prompt=replace(prompt, add_generation_prompt=False),
            params=SamplingParams(max_tokens=1),
        )
        try:
            return await submit(engine, reading)
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
