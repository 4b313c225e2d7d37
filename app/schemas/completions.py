"""`POST /v1/completions`: OpenAI's fields and ours, and its answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator
from pydantic_core import PydanticCustomError

from app.schemas.sampling import SamplingFields
from app.schemas.stream import DEFAULT_MAX_TOKENS
from app.schemas.wire_model import WireModel
from streaming import GenerationRequest, TextPrompt, TokenPrompt
from streaming.errors import InvalidRequest

_MAX_NAME_CHARS = 256

_Prompt = str | list[str] | list[int] | list[list[int]]


def _check_prompt(value: Any) -> _Prompt:
    """Tell the four forms apart in one pass, where a union would collect errors for each."""
    match value:
        case str():
            return value
        case []:
            raise PydanticCustomError("prompt_empty", "must not be empty")
        case list() if all(isinstance(part, str) for part in value) or _are_token_ids(value):
            return value
        case list() if all(isinstance(part, list) and _are_token_ids(part) for part in value):
            return value
    raise PydanticCustomError(
        "prompt_type", "must be text, a list of texts, token ids, or a list of lists of token ids"
    )


def _are_token_ids(value: list[Any]) -> bool:
    return all(type(part) is int for part in value)  # True is an int, but no token


class StreamOptions(WireModel):
    include_usage: bool | None = Field(
        False, description="One more chunk before the end, with the usage and no choices."
    )


class CompletionRequest(SamplingFields):
    """A batch of raw prompts. Unknown fields are errors; `null` means the default."""

    model: Annotated[str, Field(max_length=_MAX_NAME_CHARS)] | None = Field(
        None, description="The model that is wanted; without it, the one that is served."
    )
    prompt: Annotated[_Prompt, PlainValidator(_check_prompt, json_schema_input_type=_Prompt)] = (
        Field(description="Text, a list of texts, token ids, or a list of lists of token ids.")
    )
    max_tokens: int | None = Field(
        DEFAULT_MAX_TOKENS,
        description="Most tokens to generate; never more than the context leaves.",
    )
    n: int | None = Field(
        1,
        description="Choices for each prompt: choice k of prompt p has the `index` p × n + k, and "
        "where a `seed` is given it uses seed + k.",
    )
    best_of: int | None = Field(None, description="Only the value of `n` is supported.")
    echo: bool | None = Field(False, description="The text begins with the prompt.")
    logprobs: int | None = Field(
        None, description="Alternatives to report with each token, 0 to 20; not with `echo` yet."
    )
    suffix: str | None = Field(None, description="Not supported: only `null`.")
    stream: bool | None = Field(False, description="Answer with Server-Sent Events.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    user: Annotated[str, Field(max_length=_MAX_NAME_CHARS)] | None = Field(
        None, description="The caller's own label, kept with the generation."
    )

    @property
    def num_choices_per_prompt(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def num_prompts(self) -> int:
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return 1 if is_one else len(self.prompt)

    @property
    def prompts(self) -> list[TextPrompt] | list[TokenPrompt]:
        match self.prompt:
            case str(text):
                return [TextPrompt(text)]
            case [int(), *_] as token_ids:
                return [TokenPrompt(tuple(token_ids))]  # type: ignore[arg-type]
            case [str(), *_] as texts:
                return [TextPrompt(text) for text in texts]  # type: ignore[arg-type]
            case lists:
                return [TokenPrompt(tuple(token_ids)) for token_ids in lists]  # type: ignore[arg-type]

    def to_requests(self, *, owner: str, max_choices: int) -> list[GenerationRequest]:
        """Return one request for each choice, in the order of the answer.

        Raises:
            InvalidRequest: a value is out of range, or fields contradict each other.
        """
        self._check_fields()
        num_prompts, num_choices = self.num_prompts, self.num_choices_per_prompt
        if num_prompts * num_choices > max_choices:
            raise InvalidRequest(
                param="prompt" if num_prompts > max_choices else "n",
                reason=f"{num_prompts} prompts with n = {num_choices} make "
                f"{num_prompts * num_choices} choices; this server takes {max_choices} at once",
            )
        params = self.to_sampling_params(
            default_max_tokens=DEFAULT_MAX_TOKENS, logprobs=self.logprobs
        )
        seed = params.seed
        return [
            GenerationRequest(
                prompt=prompt,
                params=params if seed is None else replace(params, seed=seed + k),
                owner=owner,
                model=self.model,
                metadata={} if self.user is None else {"user": self.user},
            )
            for prompt in self.prompts
            for k in range(num_choices)
        ]

    def _check_fields(self) -> None:
        if self.num_choices_per_prompt < 1:
            raise InvalidRequest(param="n", reason=f"must be at least 1, not {self.n}")
        if self.best_of not in (None, self.num_choices_per_prompt):
            raise InvalidRequest(param="best_of", reason="is not supported unless it equals n")
        if self.suffix is not None:
            raise InvalidRequest(param="suffix", reason="is not supported")
        if self.echo and self.logprobs is not None:
            raise InvalidRequest(param="echo", reason="is not supported together with logprobs yet")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(param="stream_options", reason="is only allowed with stream")


class CompletionLogprobs(BaseModel):
    """OpenAI's older form: lists with one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] = Field(
        description="The alternatives, and the chosen token in any case."
    )
    text_offset: list[int] = Field(description="Where the token's text begins in the whole text.")


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class CompletionUsage(BaseModel):
    """Of all choices together; a prompt counts once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Completion(BaseModel):
    """The whole answer, or one chunk of a stream."""

    id: str = Field(examples=["cmpl-4Ef0p3Wl2Xw"])
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="Unix seconds.")
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = None
