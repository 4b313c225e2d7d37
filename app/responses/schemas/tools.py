"""The fields `tools` and `tool_choice` of a Responses request."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, assert_never

from pydantic import ConfigDict, Discriminator, Field, Tag

from app.responses.schemas.items import unsupported
from app.schemas.wire_model import WireModel
from streaming import Tool, ToolChoice, ToolMode
from streaming.errors import InvalidRequest

MAX_TOOLS = 128

_NO_PARAMETERS = '{"type": "object", "properties": {}}'
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class FunctionTool(WireModel):
    """A function that the client runs. Unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["function"]
    name: _Name
    description: str | None = Field(None, description="Shown to the model.")
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of the arguments.")
    strict: bool | None = Field(
        None, description="No effect: arguments always follow their schema."
    )

    def to_tool(self, index: int) -> Tool:
        """Return the engine's tool.

        Args:
            index: its place in `tools`, for error messages.

        Raises:
            InvalidRequest: the schema is nested too deeply for JSON.
        """
        parameters = _NO_PARAMETERS
        if self.parameters is not None:
            try:
                parameters = json.dumps(self.parameters, ensure_ascii=False)
            except RecursionError as error:
                raise InvalidRequest(
                    param=f"tools[{index}].parameters", reason="is nested too deeply"
                ) from error
        return Tool(self.name, self.description or "", parameters)

    def echo(self) -> dict[str, Any]:
        """Return the tool as the response repeats it."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "strict": self.strict,
        }


class FunctionChoice(WireModel):
    """Requires a call of this function."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["function"]
    name: _Name


class AllowedTools(WireModel):
    """Restricts calls to these functions; the model still sees the others."""

    type: Literal["allowed_tools"]
    mode: Literal["none", "auto", "required"] = "auto"
    tools: Annotated[list[FunctionChoice], Field(min_length=1, max_length=MAX_TOOLS)]


def _tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "choice[mode]"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"choice[{kind}]" if kind in ("function", "allowed_tools") else None


ToolChoiceField = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("choice[mode]")]
    | Annotated[FunctionChoice, Tag("choice[function]")]
    | Annotated[AllowedTools, Tag("choice[allowed_tools]")],
    Discriminator(
        _tag,
        custom_error_type="tool_choice",
        custom_error_message="must be none, auto, required, or an object whose type is function "
        "or allowed_tools",
    ),
]


def check_supported_tools(value: Any) -> None:
    """Check that `tools` has only functions, none of the tools that OpenAI's server runs itself.

    Call it in a validator, on the unvalidated value.

    Raises:
        PydanticCustomError: a tool has another type; with the location of the first one.
    """
    for index, tool in enumerate(value if isinstance(value, list) else ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "function":
            shown = kind[:64].encode(errors="replace").decode()
            raise unsupported(f"tools[{index}]", f"tools of the type {shown!r}")


def to_tools(fields: list[FunctionTool]) -> tuple[Tool, ...]:
    """Return the engine's tools.

    Raises:
        InvalidRequest: a schema is nested too deeply for JSON.
    """
    return tuple(field.to_tool(index) for index, field in enumerate(fields))


def to_tool_choice(field: ToolChoiceField) -> ToolChoice:
    """Return the engine's tool choice; the engine checks that its tools exist."""
    match field:
        case str(mode):
            return ToolChoice(ToolMode(mode))
        case FunctionChoice(name=name):
            return ToolChoice(ToolMode.REQUIRED, frozenset({name}))
        case AllowedTools(mode=mode, tools=allowed):
            return ToolChoice(ToolMode(mode), frozenset(tool.name for tool in allowed))
        case _:
            assert_never(field)


def echo_tool_choice(field: ToolChoiceField) -> str | dict[str, Any]:
    """Return the tool choice as the response repeats it."""
    return field if isinstance(field, str) else field.model_dump()
