"""The reasons for which a row gets no token, and whether the model or the request causes them."""

from __future__ import annotations

import math

from streaming.backend import Chunk, FailedRow
from streaming.errors import NoTokenAllowed

NOT_FINITE = FailedRow("the model's logits are not finite numbers")


class RowFailed(Exception):
    """Raised where a row can get no token.

    Args:
        row: what to return for it.
    """

    def __init__(self, row: FailedRow) -> None:
        self.row = row
        super().__init__(row.reason)


def no_token_allowed(chunk: Chunk, best: float) -> FailedRow:
    """Return which of a request's rules leaves no token; the model's own logits are finite.

    Args:
        chunk: of the sequence that gets no token.
        best: the maximum of the logits after all rules; it is not finite.
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
        # Bias and the other penalties add numbers that are too small to do this.
        error = NoTokenAllowed(
            param="repetition_penalty", reason="it makes logits larger than numbers can be"
        )
    return FailedRow(str(error), error)
