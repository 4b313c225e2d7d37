"""`tools` and `tool_choice` of a chat request, in OpenAI's forms."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from app.schemas.wire_model import WireModel
from streaming import Tool, ToolChoice, ToolMode
from streaming.errors import InvalidRequest

MAX_DESCRIPTION_CHARS = 65_536

ToolName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="1 to 64 of a-z, A-Z, 0-9, _ and -.")
]


class FunctionFields(WireModel):
    """Name, description and arguments of a function."""

    name: ToolName
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)] | None = Field(
        None, description="Tells the model what the function does."
    )
    parameters: dict[str, Any] | None = Field(
        None, description="The JSON schema of its arguments. The default is no arguments."
    )
    strict: bool | None = Field(None, description="No effect: arguments always match their schema.")


class ToolFields(WireModel):
    """A function that the model may call."""

    type: Literal["function"]
    function: FunctionFields

    def to_tool(self, *, param: str) -> Tool:
        """Return the tool for the engine. `param` is its path, such as `tools[0]`.

        Raises:
            InvalidRequest: the schema is nested too deeply.
        """
        function = self.function
        parameters = function.parameters or {"type": "object", "properties": {}}
        try:
            source = json.dumps(parameters, ensure_ascii=False)
        except RecursionError as error:
            raise InvalidRequest(
                param=f"{param}.function.parameters", reason="is nested too deeply"
            ) from error
        return Tool(function.name, function.description or "", source)


class FunctionName(WireModel):
    """Refers to a function by its name."""

    name: ToolName


class FunctionReference(WireModel):
    """The tool that the answer must call."""

    type: Literal["function"]
    function: FunctionName


class AllowedToolsFields(WireModel):
    """Which tools the answer may call, and whether it must call one."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionReference], Field(fail_fast=True, max_length=128)]


class AllowedTools(WireModel):
    """Restricts the calls to some of the tools; the prompt still describes all of them."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolsFields


_MODES = tuple(ToolMode)


def _tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "choice[mode]" if value in _MODES else None
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"choice[{kind}]" if kind in ("function", "allowed_tools") else None


ToolChoiceField = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("choice[mode]")]
    | Annotated[FunctionReference, Tag("choice[function]")]
    | Annotated[AllowedTools, Tag("choice[allowed_tools]")],
    Discriminator(
        _tag,
        custom_error_type="tool_choice_type",
        custom_error_message="must be none, auto, required, or an object whose type is function "
        "or allowed_tools",
    ),
]


def to_tool_choice(choice: str | FunctionReference | AllowedTools | None) -> ToolChoice:
    """Return the tool choice for the engine; None means `auto`."""
    match choice:
        case None:
            return ToolChoice()
        case FunctionReference():
            return ToolChoice(ToolMode.REQUIRED, frozenset({choice.function.name}))
        case AllowedTools(allowed_tools=allowed):
            names = frozenset(tool.function.name for tool in allowed.tools)
            return ToolChoice(ToolMode(allowed.mode), names)
        case mode:
            return ToolChoice(ToolMode(mode))
