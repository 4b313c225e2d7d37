"""Failures of a row, from which no token can be sampled: caused by the model or by the request."""

from __future__ import annotations

import math

from streaming.backend import Chunk, FailedRow
from streaming.errors import NoTokenAllowed

NOT_FINITE = FailedRow("the model's logits are not finite")


class RowFailed(Exception):
    """Raised by a logits processor if no token can be sampled.

    Args:
        row: the result of the row.
    """

    def __init__(self, row: FailedRow) -> None:
        self.row = row
        super().__init__(row.reason)


def no_token_allowed(chunk: Chunk, best: float) -> FailedRow:
    """Return the failure of a row with finite logits, with the request's parameter that caused it.

    Args:
        chunk: the chunk of the sequence.
        best: the maximum of the logits after all rules, which is not finite.
    """
    params = chunk.params
    if best == -math.inf and chunk.token_mask is not None:
        error = NoTokenAllowed(
            param="tools" if params.grammar is None else "response_format",
            reason="the grammar allows no token here",
        )
    elif best == -math.inf and chunk.must_not_end:
        error = NoTokenAllowed(param="min_tokens", reason="every token here would end the text")
    else:
        # Bias and the other penalties add values that are too small to cause an overflow.
        error = NoTokenAllowed(param="repetition_penalty", reason="it makes the logits overflow")
    return FailedRow(str(error), error)
