"""Requests and answers of `POST /v1/tokenize` and `POST /v1/detokenize`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from app.openai.schemas.chat import Messages, PromptFields
from app.openai.schemas.choices import Name
from app.schemas.wire_model import WireModel
from streaming import GenerationRequest, TextPrompt
from streaming.errors import InvalidRequest


class TokenizeRequest(PromptFields):
    """Exactly one of `prompt` and `messages`. Unknown fields are errors. `null` means absent."""

    model: Name | None = Field(
        None, description="The id of the model. The default is the served model."
    )
    prompt: str | None = Field(None, description="A raw prompt.")
    messages: Messages | None = Field(
        None, description="A conversation, rendered with the model's chat template."
    )
    add_special_tokens: bool | None = Field(
        None,
        description="Only `true` with a prompt, and only `false` with messages, whose chat "
        "template writes the special tokens. The tokens are those of a generation.",
    )
    return_token_strs: bool | None = Field(False, description="Also return `token_strs`.")

    def to_request(self, *, caller: str) -> GenerationRequest:
        """Return an engine request with the prompt to tokenize.

        Raises:
            InvalidRequest: there is no prompt, or there are two.
        """
        if self.add_special_tokens is (self.messages is not None):
            raise InvalidRequest(
                param="add_special_tokens",
                reason="must be true with a prompt and false with messages",
            )
        if self.messages is not None:
            if self.prompt is not None:
                raise InvalidRequest(
                    param="messages", reason="must be omitted if a prompt is given"
                )
            return GenerationRequest(
                prompt=self.to_prompt(self.messages), caller=caller, model=self.model
            )
        if self.prompt is None:
            raise InvalidRequest(param="prompt", reason="is required without messages")
        return GenerationRequest(prompt=TextPrompt(self.prompt), caller=caller, model=self.model)


class Tokens(BaseModel):
    """The tokens of a prompt."""

    count: int
    max_model_len: int = Field(description="Context length in tokens: prompt and answer together.")
    tokens: list[int]
    token_strs: list[str] | None = Field(None, description="The text of each token by itself.")


class DetokenizeRequest(WireModel):
    """Token ids to turn into text."""

    model: Name | None = Field(
        None, description="The id of the model. The default is the served model."
    )
    tokens: Annotated[list[int], Field(fail_fast=True)] = Field(description="Token ids.")


class DetokenizedText(BaseModel):
    """The text of token ids."""

    prompt: str = Field(description="The text of the tokens, without special tokens.")
