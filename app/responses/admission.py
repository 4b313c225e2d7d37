"""Getting a log for a request."""

from __future__ import annotations

import secrets
import time

from app.responses.dialect import in_this_dialect
from app.responses.truncation import shorten
from streaming import AsyncEngine, Finished, FinishReason, Generation, GenerationRequest
from streaming.errors import ModelNotFound, PromptTooLong


async def submit(
    engine: AsyncEngine, request: GenerationRequest, *, truncates: bool = False
) -> Generation:
    """Submit a request.

    Args:
        truncates: leave the oldest turns out where all do not fit.

    Raises:
        StreamingError: it cannot be served, or not now.
    """
    with in_this_dialect():
        while True:
            try:
                return await engine.submit(request)
            except PromptTooLong as error:
                shorter = shorten(request, error) if truncates else None
                if shorter is None:
                    raise
                request = shorter


def warm_up(engine: AsyncEngine, request: GenerationRequest) -> Generation:
    """Return a log that has ended and is empty.

    Raises:
        ModelNotFound: another model is asked for.
    """
    served = engine.info.model_id
    if request.model not in (None, served):
        raise ModelNotFound(model=request.model or "", served=served)
    now = time.monotonic()
    generation = Generation(
        generation_id=f"warm_up_{secrets.token_hex(8)}",
        owner=request.owner,
        model=served,
        created_at=time.time(),
        submitted_at=now,
        prompt_tokens=0,
    )
    generation.end(Finished(FinishReason.STOP, now))
    return generation
