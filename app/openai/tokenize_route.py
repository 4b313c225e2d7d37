"""`POST /v1/tokenize` and `POST /v1/detokenize`."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends

from app.dependencies import CallerDependency, ServicesDependency, bearer_scheme
from app.http.json_route import JSONRoute
from app.openai.schemas.tokenize import DetokenizedText, DetokenizeRequest, TokenizeRequest, Tokens
from app.schemas.error import error_responses
from streaming.errors import ModelNotFound

router = APIRouter(
    prefix="/v1",
    tags=["tokenize"],
    dependencies=[Depends(bearer_scheme)],
    route_class=JSONRoute,
)

TOKENIZE_EXAMPLES: dict[str, Any] = {
    "prompt": {
        "summary": "A raw prompt",
        "value": {"prompt": "The capital of France is", "return_token_strs": True},
    },
    "messages": {
        "summary": "A conversation",
        "value": {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
    },
}
DETOKENIZE_EXAMPLES: dict[str, Any] = {
    "tokens": {"summary": "Token ids", "value": {"tokens": [72, 101, 108, 108, 111]}}
}

_ERRORS = error_responses(
    "invalid_json",
    "unauthorized",
    "forbidden_origin",
    "model_not_found",
    "prompt_too_long",
    "message_too_big",
    "rate_limited",
    "unsupported_media_type",
    "invalid_request",
    "internal_error",
    "engine_error",
    "overloaded",
    "shutting_down",
)


@router.post("/tokenize", responses=_ERRORS, response_model_exclude_none=True)
async def tokenize(
    body: Annotated[TokenizeRequest, Body(openapi_examples=TOKENIZE_EXAMPLES)],
    caller: CallerDependency,
    services: ServicesDependency,
) -> Tokens:
    """Return the tokens of a prompt, exactly as a generation would start with them.

    The prompt may be longer than the context, so that a client can measure it.
    """
    engine = services.engine
    tokens = await engine.tokenize(body.to_request(caller=caller))
    result = Tokens(count=len(tokens), max_model_len=engine.info.max_model_len, tokens=tokens)
    if body.return_token_strs:
        token_text = cache(engine.tokenizer.token_text)
        result.token_strs = await asyncio.to_thread(lambda: list(map(token_text, tokens)))
    return result


@router.post("/detokenize", responses=_ERRORS)
async def detokenize(
    body: Annotated[DetokenizeRequest, Body(openapi_examples=DETOKENIZE_EXAMPLES)],
    caller: CallerDependency,
    services: ServicesDependency,
) -> DetokenizedText:
    """Return the text of token ids."""
    engine = services.engine
    if body.model is not None and body.model != engine.info.model_id:
        raise ModelNotFound(model=body.model, served=engine.info.model_id)
    return DetokenizedText(
        prompt=await engine.detokenize(body.tokens, param="tokens", caller=caller)
    )
