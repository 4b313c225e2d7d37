"""Which tokens a sequence's grammar lets it take next, as a tensor."""

from __future__ import annotations

import logging

import numpy as np
import torch

from streaming.backend import FailedRow
from streaming.backends.sampling.row_failure import RowFailed
from streaming.errors import EngineFailure
from streaming.sequence import Sequence

logger = logging.getLogger(__name__)


def token_mask(sequence: Sequence, vocab_size: int) -> torch.Tensor | None:
    """Return which tokens may come next, (vocab_size,) bool on the CPU; None without a grammar.

    Tokens that `min_tokens` bars are left out too, unless nothing else would be left: a text that
    is complete has to end.

    Args:
        vocab_size: width of the model's logits; ids that the tokenizer lacks are not allowed.

    Raises:
        RowFailed: the matcher broke down.
    """
    if sequence.matcher is None:
        return None
    try:
        mask = sequence.matcher.mask()
    # A panic in Rust is no Exception, and must not end the step, which is that of others, too.
    except BaseException as error:
        reason = "the grammar's matcher broke down"
        logger.exception("%s: %s", sequence.generation_id, reason)
        raise RowFailed(FailedRow(reason, EngineFailure())) from error
    packed = np.frombuffer(mask, dtype=np.uint8)
    bits = np.unpackbits(packed, bitorder="little")[:vocab_size]
    allowed = np.zeros(vocab_size, dtype=bool)
    allowed[: len(bits)] = bits
    if sequence.must_not_end:
        longer = allowed.copy()
        longer[list(sequence.banned_token_ids)] = False
        if longer.any():
            allowed = longer
    return torch.from_numpy(allowed)
