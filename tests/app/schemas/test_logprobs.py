from __future__ import annotations

from math import inf

from app.schemas.logprobs import MIN_LOGPROB, ChatLogprobs, clamp_logprob
from streaming import Logprob, Token, TokenLogprobs, Tokens


def test_minus_infinity_becomes_a_finite_number():
    assert clamp_logprob(-inf) == MIN_LOGPROB
    assert clamp_logprob(-0.5) == -0.5


def test_tokens_without_log_probabilities_are_left_out_and_unknown_bytes_null():
    tokens = Tokens.of(
        [
            Token(1, "a", at=0.0),
            Token(2, "b", at=0.0, logprobs=TokenLogprobs(Logprob(2, -inf), (Logprob(1, -0.5),))),
        ]
    )
    logprobs = ChatLogprobs.of(
        tokens, token_text=str, token_bytes=lambda token_id: b"x" if token_id == 1 else None
    )
    assert logprobs.model_dump() == {
        "content": [
            {
                "token": "2",
                "logprob": -9999.0,
                "bytes": None,
                "top_logprobs": [{"token": "1", "logprob": -0.5, "bytes": [120]}],
            }
        ],
        "refusal": None,
    }
