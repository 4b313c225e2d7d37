"""The terminal chat: a client of `WS /v1/stream` that can stop a reply and resume a stream."""

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

from app.cli.settings import ClientSettings

_HELP = """[bold]/new[/] starts over   [bold]/retry[/] answers again   [bold]/help[/] shows this
[bold]Ctrl-C[/] stops a reply   [bold]Ctrl-D[/] or [bold]/quit[/] exits"""
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that could send commands to the terminal; line feeds and tabs are kept."""
_MAX_ATTEMPTS = 6
_MAX_DELAY_S = 5.0


class ChatError(Exception):
    """The server refused or could not be reached; the text is shown to the user."""


class TerminalChat:
    """One conversation in the terminal.

    Args:
        settings: the server's address, the key, and sampling parameters.
        system: system message of the conversation.
    """

    def __init__(self, settings: ClientSettings, *, system: str | None = None) -> None:
        self._settings = settings
        self._console = Console(highlight=False)
        self._messages: list[dict[str, str]] = []
        self._system = [{"role": "system", "content": system}] if system else []
        self._socket: ClientConnection | None = None
        self._num_replies = 0

    def ask_once(self, question: str) -> int:
        """Print the answer to one question and return the exit status."""
        try:
            self._reply_to(question)
        except ChatError as error:
            self._print_error(error)
            return 1
        finally:
            self._close()
        return 0

    def run(self) -> int:
        """Read questions and print answers until the user exits; return the exit status."""
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
            self._console.print("\n[dim]Press Ctrl-D to exit.[/]")
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
                    self._console.print("[dim]Started a new conversation.[/]")
                case "/retry":
                    self._retry()
                case _ if line.startswith("/"):
                    message = f"Unknown command {line}; try /help."
                    self._console.print(message, style="dim", markup=False)
                case _:
                    self._reply_to(line)
        except ChatError as error:
            self._print_error(error)

    def _retry(self) -> None:
        if not self._messages:
            raise ChatError("there is no question to answer again")
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
                    self._console.print(f"[dim]position {frame['position'] + 1} in the queue[/]")
                case "delta":
                    text.append(frame["text"])
                    self._console.out(_CONTROL_CHARACTERS.sub("", frame["text"]), end="")
                case "done":
                    self._console.print(f"\n[dim]{_statistics(frame)}[/]")
                case "error":
                    raise ChatError(frame["error"]["message"])
        return "".join(text)

    def _frames(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the frames of one generation; reconnect and resume if the connection drops."""
        self._num_replies += 1
        stream_id = f"reply-{self._num_replies}"
        generation_id, cursor = None, -1
        is_stopping = False
        cancel = {"type": "cancel", "id": stream_id}
        pending: list[dict[str, Any]] = [{**request, "id": stream_id}]
        while True:
            try:
                socket = self._connect(num_attempts=_MAX_ATTEMPTS if generation_id else 1)
                while pending:
                    socket.send(json.dumps(pending[0]))
                    del pending[0]
                frame = json.loads(socket.recv())
            except KeyboardInterrupt:
                if is_stopping:
                    raise ChatError("stopped without a confirmation of the server") from None
                is_stopping = True
                pending.append(cancel)
                continue
            except ConnectionClosed as error:
                self._socket = None
                if generation_id is None:
                    raise ChatError("the connection was lost before the reply began") from error
                resume = {
                    "type": "resume",
                    "id": stream_id,
                    "generation_id": generation_id,
                    "after": cursor,
                }
                pending = [resume, cancel] if is_stopping else [resume]
                continue
            if frame.get("id", stream_id) != stream_id:
                continue  # left over from an earlier reply, stopped without a confirmation
            generation_id = frame.get("generation_id", generation_id)
            cursor = max(cursor, frame.get("seq", -1))
            yield frame
            if frame["type"] in ("done", "error"):
                return

    def _connect(self, *, num_attempts: int) -> ClientConnection:
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
                raise ChatError(_refusal_message(error)) from error
            except InvalidHandshake as error:
                message = f"{self._settings.url} is not a Tokenwire server"
                raise ChatError(message) from error
            except OSError as error:
                reason = error.strerror or str(error)
            except UnicodeError:
                reason = "not a valid host name"
            else:
                return self._socket
        raise ChatError(f"cannot reach {self._settings.url}: {reason}")

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _print_error(self, error: ChatError) -> None:
        self._console.print(_CONTROL_CHARACTERS.sub("", str(error)), style="red", markup=False)


def _refusal_message(error: InvalidStatus) -> str:
    try:
        return str(json.loads(error.response.body or b"")["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {error.response.status_code}"


def _statistics(done: dict[str, Any]) -> str:
    usage, timings = done["usage"], done["timings"]
    parts = [f"{usage['completion_tokens']} tokens"]
    if timings["ttft_s"] is not None:
        parts.append(f"first token after {timings['ttft_s'] * 1000:.0f} ms")
    if timings["tokens_per_s"] is not None:
        parts.append(f"{timings['tokens_per_s']:.1f} tokens/s")
    if done["finish_reason"] != "stop":
        parts.append(done["finish_reason"])
    return ", ".join(parts)
