"""A server with a fault: `python -m tests.e2e.faulty_server FAULT [flags of tokenwire serve]`.

It is the server of `tokenwire serve` with a scripted backend. A prompt with the word "fault" causes
the fault: `hanging-step`, `hanging-tokenizer`, `panicking-step`, or `broken-model`, where all later
steps fail, too. `none` never fails. Answers are endless.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import sys
import threading

import typer

from app.cli.commands import serve_engine
from app.cli.process import configure_logging
from app.cli.settings import load_settings
from app.server import bind
from app.settings import Settings
from streaming import AsyncEngine
from streaming.backend import Backend, Batch, Chunk, FailedRow, SampledToken
from streaming.backends.scripted import ByteTokenizer, ScriptedRunner, scripted_backend

logger = logging.getLogger(__name__)

FAULT = b"fault"


class Panic(BaseException):
    """An exception like that of a Rust library that panics."""


def hang() -> None:
    """Log a line and wait for ever."""
    logger.warning("the fault is here")
    threading.Event().wait()


class FaultyRunner(ScriptedRunner):
    """Repeats a letter until a prompt causes the fault."""

    def __init__(self, fault: str) -> None:
        super().__init__(lambda _: itertools.repeat(ord("a")))
        self._fault = fault
        self._is_broken = False

    def run(self, batch: Batch) -> list[SampledToken | FailedRow]:
        if self._is_broken or any(map(_has_fault, batch.chunks)):
            match self._fault:
                case "hanging-step":
                    hang()
                case "panicking-step":
                    raise Panic("index out of bounds")
                case "broken-model":
                    self._is_broken = True
                    raise RuntimeError("CUDA error: device-side assert triggered")
        return super().run(batch)


class FaultyTokenizer(ByteTokenizer):
    """Hangs on a prompt that causes the fault, if that is `hanging-tokenizer`."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self._fault = fault

    def encode(self, text: str) -> list[int]:
        if self._fault == "hanging-tokenizer" and FAULT.decode() in text:
            hang()
        return super().encode(text)


def _has_fault(chunk: Chunk) -> bool:
    return FAULT in bytes(chunk.token_ids)


def main() -> None:
    """Serve until a signal or a failure."""
    fault, *flags = sys.argv[1:]
    given = {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(flags[::2], flags[1::2], strict=True)
    }
    settings = load_settings(Settings, given)
    configure_logging(settings.log_level)

    def load() -> Backend:
        whole = scripted_backend(max_model_len=10**6)
        return dataclasses.replace(
            whole, runner=FaultyRunner(fault), tokenizer=FaultyTokenizer(fault)
        )

    engine = AsyncEngine.load(load, settings.to_engine_config())
    with bind(settings.host, settings.port) as listener:
        try:
            serve_engine(engine, settings, listener)
        except typer.Exit as ended:
            sys.exit(ended.exit_code)


if __name__ == "__main__":
    main()
