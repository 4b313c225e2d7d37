"""`POST /v1/tokenize` and `POST /v1/detokenize`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from app.openai.schemas.chat import Messages, PromptFields
from app.openai.schemas.choices import Name
from app.schemas.wire_model import WireModel
from streaming import GenerationRequest, TextPrompt
from streaming.errors import InvalidRequest


class TokenizeRequest(PromptFields):
    """Exactly one of `prompt` and `messages`. Unknown fields are errors; `null` means absent."""

    model: Name | None = Field(
        None, description="The model that is meant; without it, the one that is served."
    )
    prompt: str | None = Field(None, description="A raw prompt.")
    messages: Messages | None = Field(
        None, description="A conversation, written with the model's chat template."
    )
    add_special_tokens: bool | None = Field(
        None,
        description="Only `true` with a prompt, and only `false` with messages, whose template "
        "writes its own: what is told is what would be generated from.",
    )
    return_token_strs: bool | None = Field(False, description="Also return `token_strs`.")

    def to_request(self, *, caller: str) -> GenerationRequest:
        """Return the request whose prompt is meant.

        Raises:
            InvalidRequest: there is no prompt, or there are two.
        """
        if self.add_special_tokens is (self.messages is not None):
            raise InvalidRequest(
                param="add_special_tokens",
                reason="must be true with a prompt, and false with messages",
            )
        if self.messages is not None:
            if self.prompt is not None:
                raise InvalidRequest(param="messages", reason="cannot be given beside a prompt")
            return GenerationRequest(
                prompt=self.to_prompt(self.messages), caller=caller, model=self.model
            )
        if self.prompt is None:
            raise InvalidRequest(param="prompt", reason="give a prompt, or messages")
        return GenerationRequest(prompt=TextPrompt(self.prompt), caller=caller, model=self.model)


class Tokens(BaseModel):
    count: int
    max_model_len: int = Field(description="Prompt and answer together, in tokens.")
    tokens: list[int]
    token_strs: list[str] | None = Field(
        None, description="How each token is written when it is listed by itself."
    )


class DetokenizeRequest(WireModel):
    model: Name | None = Field(
        None, description="The model that is meant; without it, the one that is served."
    )
    tokens: Annotated[list[int], Field(fail_fast=True)] = Field(description="Token ids.")


class DetokenizedText(BaseModel):
    prompt: str = Field(description="The text of the tokens, special ones left out.")
