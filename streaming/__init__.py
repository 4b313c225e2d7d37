"""The generation engine: model backends, scheduling, and the logs that clients read.

This module is the public interface of the package. `app` imports from here and from
`streaming.errors` only; nothing in the package imports the web layer.
"""

from streaming.backend import Backend, ModelInfo
from streaming.backends import list_cached_models, load_backend
from streaming.chat.messages import ChatMessage, Tool, ToolCall, ToolChoice, ToolMode
from streaming.chat.output_parser import (
    AnswerText,
    OutputFormat,
    OutputParser,
    Piece,
    ReasoningSyntax,
    ReasoningText,
    ToolArguments,
    ToolCallEnded,
    ToolCallStarted,
    ToolSyntax,
)
from streaming.config import BackendName, EngineConfig, ModelConfig
from streaming.engine.async_engine import AsyncEngine, EngineStats
from streaming.log.generation import (
    Failed,
    Finished,
    FinishReason,
    Generation,
    Logprob,
    Queued,
    Scores,
    Started,
    Token,
    TokenLogprobs,
    Tokens,
)
from streaming.log.reader import Delta, Ended, Event, Reader
from streaming.log.store import LogStore
from streaming.output_constraint import Grammar, GrammarKind
from streaming.request import (
    ANYONE,
    ChatPrompt,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from streaming.sampling_params import SamplingParams

__all__ = [
    "ANYONE",
    "AnswerText",
    "AsyncEngine",
    "Backend",
    "BackendName",
    "ChatMessage",
    "ChatPrompt",
    "Delta",
    "Ended",
    "EngineConfig",
    "EngineStats",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "Generation",
    "GenerationRequest",
    "Grammar",
    "GrammarKind",
    "LogStore",
    "Logprob",
    "ModelConfig",
    "ModelInfo",
    "OutputFormat",
    "OutputParser",
    "Piece",
    "Prompt",
    "Queued",
    "Reader",
    "ReasoningSyntax",
    "ReasoningText",
    "SamplingParams",
    "Scores",
    "Started",
    "TextPrompt",
    "Token",
    "TokenLogprobs",
    "TokenPrompt",
    "Tokens",
    "Tool",
    "ToolArguments",
    "ToolCall",
    "ToolCallEnded",
    "ToolCallStarted",
    "ToolChoice",
    "ToolMode",
    "ToolSyntax",
    "list_cached_models",
    "load_backend",
]
