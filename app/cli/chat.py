"""A chat in the terminal, over `WS /v1/stream`: it streams, stops, and survives a dropped line."""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from app.settings import ClientSettings

_HELP = """[bold]/new[/] starts over   [bold]/retry[/] answers again   [bold]/help[/] shows this
[bold]Ctrl-C[/] stops a reply   [bold]Ctrl-D[/] or [bold]/quit[/] ends"""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey and not show; lines and tabs are text."""
_MAX_ATTEMPTS = 6
_MAX_DELAY_S = 5.0


class ChatError(Exception):
    """The server refused or cannot be reached; the text is for the user."""


class Chat:
    """One conversation.

    Args:
        settings: where the server is and how to sample.
        system: what the assistant is told first.
    """

    def __init__(self, settings: ClientSettings, *, system: str | None = None) -> None:
        self._settings = settings
        self._console = Console(highlight=False)
        self._messages: list[dict[str, str]] = []
        self._system = [{"role": "system", "content": system}] if system else []
        self._socket: ClientConnection | None = None
        self._num_replies = 0

    def ask_once(self, question: str) -> int:
        """Print the answer to one question; return the exit status."""
        try:
            self._reply_to(question)
        except ChatError as error:
            self._complain(error)
            return 1
        finally:
            self._close()
        return 0

    def run(self) -> int:
        """Talk until the user ends it; return the exit status."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() its line editing and history
        self._console.print(f"[bold]Tokenwire[/] at {escape(self._settings.url)}\n{_HELP}\n")
        try:
            while (line := self._read_line()) is not None:
                if line.strip() in ("/quit", "/exit"):
                    break
                self._run_command(line.strip())
        finally:
            self._close()
        return 0

    def _read_line(self) -> str | None:
        try:
            return self._console.input("[bold cyan]> [/]")
        except KeyboardInterrupt:
            self._console.print("\n[dim]Ctrl-D ends the program.[/]")
            return ""
        except EOFError:
            self._console.print()
            return None

    def _run_command(self, line: str) -> None:
        try:
            match line:
                case "":
                    return
                case "/help":
                    self._console.print(_HELP)
                case "/new":
                    self._messages.clear()
                    self._console.print("[dim]A new conversation.[/]")
                case "/retry":
                    self._retry()
                case _ if line.startswith("/"):
                    message = f"There is no command {line}; try /help."
                    self._console.print(message, style="dim", markup=False)
                case _:
                    self._reply_to(line)
        except ChatError as error:
            self._complain(error)

    def _retry(self) -> None:
        if not self._messages:
            raise ChatError("there is nothing to answer again")
        last_turn = self._messages[-2:]
        del self._messages[-2:]
        try:
            self._reply_to(last_turn[0]["content"])
        except ChatError:
            self._messages += last_turn
            raise

    def _reply_to(self, question: str) -> None:
        self._messages.append({"role": "user", "content": question})
        try:
            text = self._stream()
        except ChatError:
            self._messages.pop()
            raise
        self._messages.append({"role": "assistant", "content": text})

    def _stream(self) -> str:
        request: dict[str, Any] = {
            "type": "generate",
            "messages": [*self._system, *self._messages],
            "temperature": self._settings.temperature,
        }
        if self._settings.max_tokens is not None:
            request["max_tokens"] = self._settings.max_tokens
        text: list[str] = []
        for frame in self._frames(request):
            match frame["type"]:
                case "queued":
                    self._console.print(f"[dim]place {frame['position'] + 1} in the queue[/]")
                case "delta":
                    text.append(frame["text"])
                    self._console.out(_CONTROL.sub("", frame["text"]), end="")
                case "done":
                    self._console.print(f"\n[dim]{_statistics(frame)}[/]")
                case "error":
                    raise ChatError(frame["error"]["message"])
        return "".join(text)

    def _frames(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the frames of one generation to its end, across dropped connections."""
        self._num_replies += 1
        name = f"reply-{self._num_replies}"
        handle, cursor = None, -1
        is_stopping = False
        cancel = {"type": "cancel", "id": name}
        pending: list[dict[str, Any]] = [{**request, "id": name}]
        while True:
            try:
                socket = self._connected(num_attempts=_MAX_ATTEMPTS if handle else 1)
                while pending:
                    socket.send(json.dumps(pending[0]))
                    del pending[0]
                frame = json.loads(socket.recv())
            except KeyboardInterrupt:
                if is_stopping:
                    raise ChatError("stopped; the server has not confirmed it") from None
                is_stopping = True
                pending.append(cancel)
                continue
            except ConnectionClosed as error:
                self._socket = None
                if handle is None:
                    raise ChatError("the connection was lost before the reply began") from error
                resume = {"type": "resume", "id": name, "generation_id": handle, "after": cursor}
                pending = [resume, cancel] if is_stopping else [resume]
                continue
            if frame.get("id", name) != name:
                continue  # the rest of a reply that was given up
            handle = frame.get("generation_id", handle)
            cursor = max(cursor, frame.get("seq", -1))
            yield frame
            if frame["type"] in ("done", "error"):
                return

    def _connected(self, *, num_attempts: int) -> ClientConnection:
        if self._socket is not None:
            return self._socket
        url = self._settings.url.rstrip("/").replace("http", "ws", 1) + "/v1/stream"
        key = self._settings.api_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        for attempt in range(num_attempts):
            if attempt:
                time.sleep(min(_MAX_DELAY_S, 0.25 * 2**attempt) * random.uniform(0.5, 1))
            try:
                self._socket = connect(url, additional_headers=headers, max_size=None)
            except InvalidStatus as error:
                raise ChatError(_refusal(error)) from error
            except InvalidHandshake as error:
                message = f"{self._settings.url} is no server of this kind"
                raise ChatError(message) from error
            except OSError as error:
                reason = error.strerror or str(error)
            except UnicodeError:
                reason = "There cannot be such a name"
            else:
                return self._socket
        raise ChatError(f"cannot reach {self._settings.url}: {reason}")

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _complain(self, error: ChatError) -> None:
        self._console.print(_CONTROL.sub("", str(error)), style="red", markup=False)


def _refusal(error: InvalidStatus) -> str:
    try:
        return str(json.loads(error.response.body or b"")["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {error.response.status_code}"


def _statistics(done: dict[str, Any]) -> str:
    usage, timings = done["usage"], done["timings"]
    parts = [f"{usage['completion_tokens']} tokens"]
    if timings["ttft_s"] is not None:
        parts.append(f"first after {timings['ttft_s'] * 1000:.0f} ms")
    if timings["tokens_per_s"] is not None:
        parts.append(f"{timings['tokens_per_s']:.1f} tokens/s")
    if done["finish_reason"] != "stop":
        parts.append(done["finish_reason"])
    return ", ".join(parts)
