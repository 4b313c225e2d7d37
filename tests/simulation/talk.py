"""The state of a client for one generation, over all its sockets."""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections import Counter
from typing import Any, ClassVar

from app.responses.response import LiveResponse
from streaming import Generation
from tests.app.conversation import Frame
from tests.simulation.server import RETENTION_S, SimulatedServer
from tests.simulation.world import World
from tests.support import text_up_to

_TEXTS = ("The sea is blue. ", "Zwölf Boxkämpfer ", "漢字と仮名", "🙂🙃", "stop and stop, ", "a")
_ENDINGS = ("response.completed", "response.incomplete", "response.failed")


class Talk(ABC):
    """A generation that a client requests, and the part of it that it has received.

    Args:
        server: the server of the generation.
        world: provides time and random numbers.
        counts: numbers of events, by name.
    """

    path: ClassVar[str]

    def __init__(self, server: SimulatedServer, world: World, counts: Counter[str]) -> None:
        self.server = server
        self.world = world
        self.counts = counts
        self.max_tokens = 100 if server.step_s > 0.1 else 600
        self.prompt = _prompt(world.rng, max_bytes=self.max_tokens)
        self.log: Generation | None = None
        self.is_over = False
        self.left_at: float | None = None
        """When the client was last connected."""

    def open(self) -> dict[str, Any]:
        """Return the first message on a new socket: a request, or a resume."""
        self.counts["generates" if self.log is None else "resumes"] += 1
        return self.ask() if self.log is None else self.resume()

    def cancel(self) -> dict[str, Any]:
        """Return the message that cancels the generation."""
        assert self.log is not None
        self.server.cancelled.add(self.log.generation_id)
        return self.stop()

    @abstractmethod
    def ask(self) -> dict[str, Any]:
        """Return the message that requests the generation."""

    @abstractmethod
    def resume(self) -> dict[str, Any]:
        """Return the message that resumes it after the last received record."""

    @abstractmethod
    def stop(self) -> dict[str, Any]:
        """Return the cancel message of the protocol."""

    @abstractmethod
    def take(self, frame: Frame) -> None:
        """Process a frame of this generation, and assert that it continues the previous ones."""

    @property
    @abstractmethod
    def has_ended(self) -> bool:
        """Whether the client has received the whole generation."""

    @abstractmethod
    def copy(self) -> Talk:
        """Return the state of another device that knows only the id of the generation."""

    @abstractmethod
    def again(self) -> Talk:
        """Return the state of a client that has the whole text but has not seen the ending."""

    def refused(self, code: str) -> None:
        """Process an error frame in response to the first message."""
        self.counts[code] += 1
        self.is_over = True
        if code == "shutting_down" or (code == "nothing_to_resume" and self.has_ended):
            return
        assert code in ("generation_not_found", "response_not_found"), code
        assert self.log is not None
        self.server.check_gone(self.log)
        if self.left_at is not None and self.world.time - self.left_at < RETENTION_S:
            self.counts["gone, though its client came back in time"] += 1


class StreamTalk(Talk):
    """A stream of `WS /v1/stream`."""

    path = "/v1/stream"

    def __init__(self, server: SimulatedServer, world: World, counts: Counter[str]) -> None:
        super().__init__(server, world, counts)
        self._stop = ["and stop, stop"] if world.rng.random() < 0.3 else []
        self._with_token_ids = world.rng.random() < 0.3
        self._cursor = -1
        self._text = ""
        self._token_ids: list[int] = []

    def ask(self) -> dict[str, Any]:
        return {
            "type": "generate",
            "prompt": self.prompt,
            "stop": self._stop,
            "max_tokens": self.max_tokens,
            "return_token_ids": self._with_token_ids,
        }

    def resume(self) -> dict[str, Any]:
        assert self.log is not None
        return {
            "type": "resume",
            "generation_id": self.log.generation_id,
            "after": self._cursor,
            "return_token_ids": self._with_token_ids,
        }

    def stop(self) -> dict[str, Any]:
        return {"type": "cancel"}

    @property
    def has_ended(self) -> bool:
        return self.log is not None and self.log.is_ended and self._cursor == self.log.last_seq

    def copy(self) -> StreamTalk:
        copy = StreamTalk(self.server, self.world, self.counts)
        copy.log = self.log
        return copy

    def again(self) -> StreamTalk:
        again = self.copy()
        again._with_token_ids = False
        again._cursor, again._text = self._cursor, self._text
        return again

    def take(self, frame: Frame) -> None:
        match frame["type"]:
            case "accepted":
                log = self.server.logs[frame["generation_id"]]
                assert self.log in (None, log)
                self.log = log
            case "delta":
                assert self.log is not None
                assert frame["seq"] > self._cursor, "text that the client already has"
                self._cursor = frame["seq"]
                self._text += frame["text"]
                self._token_ids += frame.get("token_ids", ())
                assert self._text == text_up_to(self.log, self._cursor), "a gap or an overlap"
            case "done":
                self.counts[frame["finish_reason"]] += 1
                self._end(frame)
            case "error" if "seq" in frame:
                assert frame["error"]["code"] == "shutting_down"
                self._end(frame)
            case "error":
                self.refused(frame["error"]["code"])

    def _end(self, frame: Frame) -> None:
        assert self.log is not None
        self._cursor = frame["seq"]
        assert self._cursor == self.log.last_seq
        assert self._text == self.log.text, "the end of the text is missing"
        if self._with_token_ids:
            assert self._token_ids == [token.token_id for token in self.log.tokens]
        self.is_over = True


class ResponseTalk(Talk):
    """A response of `WS /v1/responses`."""

    path = "/v1/responses"

    def __init__(self, server: SimulatedServer, world: World, counts: Counter[str]) -> None:
        super().__init__(server, world, counts)
        self._response_id = ""
        self._response: LiveResponse | None = None
        self._events: list[Frame] = []

    def ask(self) -> dict[str, Any]:
        return {
            "type": "response.create",
            "input": self.prompt,
            "max_output_tokens": self.max_tokens,
        }

    def resume(self) -> dict[str, Any]:
        return {
            "type": "tokenwire.response.resume",
            "response_id": self._response_id,
            "starting_after": len(self._events) - 1,
        }

    def stop(self) -> dict[str, Any]:
        return {"type": "response.cancel", "response_id": self._response_id}

    @property
    def has_ended(self) -> bool:
        return bool(self._events) and self._events[-1]["type"] in _ENDINGS

    def copy(self) -> ResponseTalk:
        copy = ResponseTalk(self.server, self.world, self.counts)
        copy.log = self.log
        copy._response = self._response
        copy._response_id = self._response_id
        return copy

    def again(self) -> ResponseTalk:
        again = self.copy()
        again._events = list(self._events)
        return again

    def take(self, frame: Frame) -> None:
        kind = frame["type"]
        if kind == "error":
            self.refused(frame["error"]["code"])
            return
        event = {name: value for name, value in frame.items() if name != "stream_id"}
        assert event["sequence_number"] == len(self._events)
        self._events.append(event)
        if kind == "response.created":
            self._response_id = event["response"]["id"]
            self._response = self.server.responses[self._response_id]
            assert self.log in (None, self._response.generation)
            self.log = self._response.generation
        assert self._response is not None
        if kind in _ENDINGS:
            self.counts[f"{kind} {event['response']['status']}"] += 1
            written = json.loads(json.dumps(list(self._response.writer().events())))
            assert self._events == written
            self.is_over = True


def _prompt(rng: random.Random, *, max_bytes: int) -> str:
    texts = rng.choices(_TEXTS, k=rng.choice((1, 4, 10, 40)))
    return "".join(texts).encode()[:max_bytes].decode(errors="ignore")
