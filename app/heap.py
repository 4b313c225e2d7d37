"""What Python's garbage collector looks at, and how often."""

from __future__ import annotations

import gc
import logging

logger = logging.getLogger(__name__)

THRESHOLDS = (5_000, 5, 20)
"""New objects until the youngest generation is collected; how many times that until the middle one
is, and that until all are. A collection holds every thread, so its size counts more than their
number: up to 5,000 objects take 0.6 ms, up to 30,000 take 6 ms. With Python's own 700, 10, 10 the
answer of 8,000 tokens with log probabilities brings on full collections while it is written, of
57 ms. Rarer full ones would let cycles pile up: these have 500,000 objects at most."""


def freeze_gc() -> None:
    """Leave out of every later collection what is alive now: call it once all is loaded.

    torch, transformers and the model are 370,000 objects that live as long as the process. A full
    collection looks at each of them and holds every thread, the event loop too: 170 ms on an AMD
    EPYC (Zen 4), and one comes whenever enough else has piled up. Frozen, it takes 0.8 ms.
    """
    gc.collect()  # what is garbage now would stay for ever
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    logger.debug("the garbage collector leaves out %d objects", gc.get_freeze_count())
