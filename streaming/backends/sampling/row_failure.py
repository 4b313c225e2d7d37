"""Why a sequence gets no token, and whose fault that is."""

from __future__ import annotations

import math

from streaming.backend import FailedRow
from streaming.errors import NoTokenAllowed
from streaming.sequence import Sequence

NOT_FINITE = FailedRow("the model's logits are not finite numbers")


class RowFailed(Exception):
    """Ends the search for the next token of one sequence."""

    def __init__(self, row: FailedRow) -> None:
        self.row = row
        super().__init__(row.reason)


def no_token_allowed(sequence: Sequence, best: float) -> FailedRow:
    """Return which of a request's rules leaves no token, the model's own logits being finite.

    Args:
        best: the greatest logit behind all rules; it is not finite.
    """
    params = sequence.params
    if best == -math.inf and sequence.matcher is not None:
        error = NoTokenAllowed(
            param="tools" if params.grammar is None else "response_format",
            reason="the grammar allows no token here",
        )
    elif best == -math.inf and sequence.must_not_end:
        error = NoTokenAllowed(param="min_tokens", reason="every token here would end the text")
    else:
        # Bias and the other penalties add numbers that are too small to do this.
        error = NoTokenAllowed(
            param="repetition_penalty", reason="it makes logits larger than numbers can be"
        )
    return FailedRow(str(error), error)
