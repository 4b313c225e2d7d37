from __future__ import annotations

import gc
import weakref

from app.heap import THRESHOLDS, freeze_heap


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_what_is_alive_is_left_out_and_what_is_garbage_is_gone() -> None:
    kept, garbage = Node(), weakref.ref(Node())
    thresholds = gc.get_threshold()
    try:
        freeze_heap()
        assert garbage() is None
        assert all(each is not kept for each in gc.get_objects())
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() == THRESHOLDS
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
    assert any(each is kept for each in gc.get_objects())
