"""Request and answers of `POST /v1/completions`: OpenAI's fields and a few of our own."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, PlainValidator
from pydantic_core import PydanticCustomError

from app.openai.schemas.choices import ChoiceFields
from app.schemas.request_fields import DEFAULT_MAX_TOKENS
from app.schemas.usage import Usage
from streaming import GenerationRequest, TextPrompt, TokenPrompt
from streaming.errors import InvalidRequest

_Prompt = str | list[str] | list[int] | list[list[int]]


def _check_prompt(value: Any) -> _Prompt:
    """Return a prompt in one of the four forms.

    A pydantic union would collect the errors of each form; this is one pass.
    """
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
        "prompt_type",
        "must be a string, an array of strings, an array of token ids, or an array of arrays of "
        "token ids",
    )


def _are_token_ids(value: list[Any]) -> bool:
    return all(type(part) is int for part in value)  # excludes bool, a subclass of int


class CompletionRequest(ChoiceFields):
    """One raw prompt or several. Unknown fields are errors. `null` means the default."""

    prompt: Annotated[_Prompt, PlainValidator(_check_prompt, json_schema_input_type=_Prompt)] = (
        Field(
            description="A string, an array of strings, an array of token ids, or an array of "
            "arrays of token ids."
        )
    )
    max_tokens: int | None = Field(
        DEFAULT_MAX_TOKENS,
        description="Most tokens to generate. The rest of the context is a limit, too. 0 is "
        "allowed with `echo`: the answer is the prompt.",
    )
    best_of: int | None = Field(None, description="Only the value of `n`.")
    echo: bool | None = Field(
        False,
        description="Begin the text with the prompt, and `logprobs` with the tokens of the prompt. "
        "Its first token has no log probability.",
    )
    logprobs: int | None = Field(
        None, description="Alternatives to report for each token, 0 to 20."
    )
    suffix: None = Field(None, description="Not supported: only `null`.")
    add_special_tokens: Literal[True] | None = Field(
        None,
        description="Only `true`: text begins with the model's start token, if it has one. Token "
        "ids are used unchanged.",
    )

    @property
    def is_prompt_only(self) -> bool:
        """Whether the answer is the prompt alone. The engine still runs one step to prefill it."""
        return self.max_tokens == 0 and bool(self.echo)

    @property
    def num_prompts(self) -> int:
        """The number of prompts; cheaper than `len(prompts)`."""
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return 1 if is_one else len(self.prompt)

    @property
    def prompts(self) -> list[TextPrompt] | list[TokenPrompt]:
        """The prompts, in order."""
        # mypy does not narrow the type of a list by a pattern on its elements.
        match self.prompt:
            case str(text):
                return [TextPrompt(text)]
            case [int(), *_] as token_ids:
                return [TokenPrompt(tuple(token_ids))]  # type: ignore[arg-type]
            case [str(), *_] as texts:
                return [TextPrompt(text) for text in texts]  # type: ignore[arg-type]
            case lists:
                return [TokenPrompt(tuple(token_ids)) for token_ids in lists]  # type: ignore[arg-type]

    def to_requests(self, *, caller: str, max_choices: int) -> list[GenerationRequest]:
        """Return one engine request for each choice, in the order of the answer.

        Raises:
            InvalidRequest: a value is out of range, or fields contradict each other.
        """
        self.check_choices(num_prompts=self.num_prompts, max_choices=max_choices)
        if self.best_of not in (None, self.num_choices_per_prompt):
            raise InvalidRequest(
                param="best_of",
                reason=f"must equal n, which is {self.num_choices_per_prompt} (got {self.best_of})",
            )
        params = self._with_one_token().to_sampling_params(
            default_max_tokens=DEFAULT_MAX_TOKENS,
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo else None,
        )
        return self.to_choices(self.prompts, params, caller=caller)

    def _with_one_token(self) -> Self:
        return self.model_copy(update={"max_tokens": 1}) if self.is_prompt_only else self


class CompletionLogprobs(BaseModel):
    """OpenAI's older form of log probabilities: lists with one entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] = Field(
        description="The alternatives and the chosen token."
    )
    text_offset: list[int] = Field(description="Where the token begins in `text`, in characters.")


class CompletionChoice(BaseModel):
    """One completion of one prompt, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    token_ids: list[int] | None = Field(None, description="Only with `return_token_ids`.")


class Completion(BaseModel):
    """The whole answer, or one chunk of a stream."""

    id: str = Field(examples=["cmpl-4Ef0p3Wl2Xw"])
    object: Literal["text_completion"] = "text_completion"
    created: int = Field(description="Unix time in seconds.")
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
