"""The host that uses the operating system."""

from __future__ import annotations

import queue
import threading

import pytest

from streaming.host import Host
from tests.support import TIMEOUT_S


def test_time_is_monotonic():
    host = Host()
    times = [host.now() for _ in range(3)]
    assert times == sorted(times)


def test_a_thread_does_not_block_the_exit_of_the_process():
    host, names = Host(), list[str]()
    thread = host.make_thread(lambda: names.append(threading.current_thread().name), name="a")
    assert isinstance(thread, threading.Thread)
    assert thread.daemon
    thread.start()
    thread.join(TIMEOUT_S)
    assert names == ["a"]
    assert not thread.is_alive()


def test_an_inbox_keeps_the_order():
    inbox, done = Host().make_inbox(), list[int]()
    inbox.put(lambda: done.append(1))
    inbox.put(lambda: done.append(2))
    inbox.get()()
    inbox.get_nowait()()
    assert done == [1, 2]
    with pytest.raises(queue.Empty):
        inbox.get_nowait()
