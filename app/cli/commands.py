"""The command line: `tokenwire serve`, `chat` and `models`.

Exit status 2 means that a setting is not valid, 1 that something failed. Both come with one line on
standard error and no traceback.
"""

from __future__ import annotations

import errno
import inspect
import logging
import sys
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from socket import socket
from typing import Annotated, Any, NoReturn, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.cli.process import configure_logging, exit_now, exit_within
from app.cli.settings import ClientSettings, check_keys, ignored_variables, load_settings
from app.cli.terminal_chat import TerminalChat
from app.main import create_app, load_engine, make_response_store
from app.responses.storage.store_status import StoreTooNew
from app.schemas.validation import to_error_info
from app.server import SIGNALLED_TWICE, Server, bind, freeze_gc
from app.settings import Settings
from streaming import AsyncEngine, list_cached_models
from streaming.errors import ModelLoadError

logger = logging.getLogger(__name__)
stderr = Console(stderr=True, highlight=False)

cli = typer.Typer(
    name="tokenwire",
    help="Serve a language model and stream its tokens over WebSockets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its table truncates the variables' names in a narrow terminal
)


def _takes_settings(model: type[Settings] | type[ClientSettings]) -> Callable[[Any], Any]:
    """Give a command one option for each setting, so that each setting is defined only once."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        options = [_to_option(name, field) for name, field in model.model_fields.items()]
        # typer reads the attribute through `inspect`; mypy does not know it.
        command.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *options)]
        )
        command.__annotations__ |= {option.name: option.annotation for option in options}
        return command

    return decorate


def _to_option(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    kind = _option_type(field.annotation)
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, ()) else f", default {_format_default(default)}"
    help_text = f"{field.description} [TOKENWIRE_{name.upper()}{shown}]"
    option = typer.Option(
        f"{flag}/--no-{name.replace('_', '-')}" if kind is bool else flag,
        help=help_text,
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _option_type(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)] or [annotation]
    kind = kinds[0]
    is_plain = isinstance(kind, type) and issubclass(kind, bool | int | float | StrEnum)
    return kind if is_plain and get_origin(annotation) is not tuple else str


def _format_default(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


@cli.command()
@_takes_settings(Settings)
def serve(**given: Any) -> None:
    """Serve the model: the chat page, the WebSocket and the REST routes."""
    settings = _resolve(Settings, given)
    try:
        check_keys(settings)
    except ValueError as error:
        _fail(str(error), status=2)
    configure_logging(settings.log_level)
    logger.info("settings: %s", settings)
    if ignored := ignored_variables(Settings):
        logger.warning("ignoring variables of other commands: %s", ", ".join(ignored))
    _check_store(settings)
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        _fail(_cannot_listen(settings, error))
    with listener:
        serve_engine(_load(settings), settings, listener)


def serve_engine(engine: AsyncEngine, settings: Settings, listener: socket) -> None:
    """Serve until a signal or an engine failure.

    Args:
        engine: not started yet; closed at the end.
        settings: addresses and limits.
        listener: a bound socket, as returned by `bind`.

    Raises:
        typer.Exit: the server failed or a second signal stopped it; one line on standard error
            says so.
    """
    server = Server(
        create_app(settings, engine),
        settings,
        exit_within=lambda delay_s, message: exit_within(delay_s, message, status=1),
    )
    freeze_gc()
    try:
        server.run(sockets=[listener])
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        _fail(_cannot_listen(settings, error))
    message = SIGNALLED_TWICE if server.force_exit else None
    if server.has_failed:
        message = "stopped because the engine failed; the log has the reason"
    if engine.has_stuck_threads:
        exit_now(message, status=1)
    if message is not None:
        _fail(message)


@cli.command()
@_takes_settings(ClientSettings)
def chat(
    question: Annotated[
        str | None, typer.Argument(help="Ask one question, print the answer, and exit.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message of the conversation.")] = None,
    **given: Any,
) -> None:
    """Chat with a running server. Ctrl-C stops a reply, Ctrl-D exits."""
    settings = _resolve(ClientSettings, given)
    terminal_chat = TerminalChat(settings, system=system)
    sys.exit(terminal_chat.ask_once(question) if question else terminal_chat.run())


@cli.command()
def models(
    cache_dir: Annotated[str | None, typer.Option(help="Folder for converted models.")] = None,
) -> None:
    """List the models that are stored on this machine."""
    table = Table("model", "stored on", "MB", "folder", box=None, pad_edge=False)
    found = list_cached_models(cache_dir or _resolve(Settings, {}).cache_dir)
    for model in found:
        table.add_row(
            model.name,
            f"{datetime.fromtimestamp(model.created_at):%Y-%m-%d}",
            f"{model.num_bytes / 1e6:.0f}",
            str(model.path),
        )
    Console().print(table if found else "No model has been downloaded or converted yet.")


def main() -> None:
    """Run the command line."""
    cli()


def _resolve(model: type[Any], given: dict[str, Any]) -> Any:
    try:
        return load_settings(model, {k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        info = to_error_info(error.errors())
        _fail(info.message, status=2)
    except ValueError as error:
        _fail(str(error), status=2)


def _check_store(settings: Settings) -> None:
    """Exit before the model is loaded if a newer version has written the stored responses."""
    store = make_response_store(settings)
    try:
        if store is not None:
            store.check_version()
    except StoreTooNew as error:
        _fail(str(error))


def _load(settings: Settings) -> AsyncEngine:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(
            *columns, console=stderr, transient=True, disable=not stderr.is_terminal
        ) as progress:
            task = progress.add_task("loading the model", total=None)

            last_shown = ""

            def show(what: str, fraction: float | None) -> None:
                nonlocal last_shown
                total = None if fraction is None else 1.0
                progress.update(task, description=what, total=total, completed=fraction or 0.0)
                if what != last_shown and not stderr.is_terminal:
                    logger.info("%s", what)
                last_shown = what

            return load_engine(settings, on_progress=show)
    except ModelLoadError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        exit_now("interrupted", status=130)  # the loading thread cannot be stopped


def _cannot_listen(settings: Settings, error: OSError) -> str:
    return f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}"


def _fail(message: str, *, status: int = 1) -> NoReturn:
    stderr.print(f"tokenwire: {message}", markup=False, soft_wrap=True)
    raise typer.Exit(status)
