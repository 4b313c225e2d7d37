"""The generation engine: logs, sequences, and the models that write them. Knows no web."""

from streaming.async_engine import AsyncEngine, EngineStats
from streaming.backend import Backend, ModelInfo
from streaming.backends import list_cached_models, load_backend
from streaming.chat import ChatMessage, Tool, ToolCall, ToolChoice, ToolMode
from streaming.config import BackendName, EngineConfig, ModelConfig
from streaming.generation import (
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
from streaming.grammar import Grammar, GrammarKind
from streaming.output_parser import (
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
from streaming.reader import Delta, Ended, Event, Reader
from streaming.request import (
    ANYONE,
    ChatPrompt,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from streaming.sampling_params import SamplingParams
from streaming.store import LogStore

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
