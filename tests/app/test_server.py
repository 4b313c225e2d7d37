from __future__ import annotations

import errno

import pytest

from app.server import Server, bind
from app.settings import Settings
from streaming.backends.scripted import scripted_backend
from tests.app.serving import make_app


def test_a_server_that_comes_second_to_its_address_is_told():
    """Both could bind it, as neither listened yet: they were loading their models."""
    app, _ = make_app(scripted_backend())
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        first.listen()
        with pytest.raises(OSError, match="in use") as refused:
            Server(app, Settings()).run(sockets=[second])
    assert refused.value.errno == errno.EADDRINUSE
