"""Request fields that `/v1/completions` and `/v1/chat/completions` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from app.schemas.sampling import SamplingFields
from app.schemas.unsupported import HINTS
from app.schemas.wire_model import WireModel
from streaming import GenerationRequest, Prompt, SamplingParams
from streaming.errors import InvalidRequest

MAX_NAME_CHARS = 256

Name = Annotated[str, Field(max_length=MAX_NAME_CHARS)]


class StreamOptions(WireModel):
    """Options of a stream."""

    include_usage: bool | None = Field(
        False, description="Send a last chunk with the usage and no choices."
    )
    include_obfuscation: Literal[False] | None = Field(
        None, description="Only `false`: this server does not pad chunks."
    )


class ChoiceFields(SamplingFields):
    """A request for choices. Unknown fields are errors. `null` means the default."""

    model: Name | None = Field(
        None, description="The id of the model. The default is the served model."
    )
    n: int | None = Field(
        1,
        description="Number of choices for each prompt. Choice k of prompt p has `index` p × n + "
        "k. With a `seed`, it uses seed + k, which wraps from the greatest seed to the least.",
    )
    stream: bool | None = Field(False, description="Stream the answer as Server-Sent Events.")
    stream_options: StreamOptions | None = Field(None, description="Needs `stream`.")
    return_token_ids: bool | None = Field(
        False, description="Report the token ids of each choice in `token_ids`."
    )
    user: Name | None = Field(None, description="A label of your own, stored with the generation.")

    @model_validator(mode="before")
    @classmethod
    def _drop_absent(cls, fields: Any) -> Any:
        """Drop unsupported fields that are `null`; clients send such fields for the default."""
        if not isinstance(fields, dict):
            return fields
        known = cls.model_fields
        return {
            name: value
            for name, value in fields.items()
            if value is not None or name in known or name not in HINTS
        }

    @property
    def num_choices_per_prompt(self) -> int:
        """`n`, or its default."""
        return 1 if self.n is None else self.n

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def check_choices(self, *, num_prompts: int, max_choices: int) -> None:
        """Check `n`, the number of choices, and `stream_options`.

        Raises:
            InvalidRequest: there are no choices or too many, or `stream` is missing.
        """
        num_choices = self.num_choices_per_prompt
        if num_choices < 1:
            raise InvalidRequest(param="n", reason=f"must be at least 1 (got {self.n})")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(param="stream_options", reason="needs stream to be true")
        if num_prompts * num_choices > max_choices:
            raise InvalidRequest(
                param="prompt" if num_prompts > max_choices else "n",
                reason=f"must ask for at most {max_choices} choices in total (got {num_prompts} "
                f"prompts with n = {num_choices})",
            )

    def to_choices(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        caller: str,
        metadata: Mapping[str, str] | None = None,
    ) -> list[GenerationRequest]:
        """Return one engine request for each choice, in the order of the answer.

        Raises:
            InvalidRequest: a value is out of range; `param` names the field.
        """
        labels = {} if self.user is None else {"user": self.user}
        return [
            self.to_generation_request(
                prompt,
                params.with_seed_offset(k),
                caller=caller,
                model=self.model,
                metadata={**labels, **(metadata or {})},
            )
            for prompt in prompts
            for k in range(self.num_choices_per_prompt)
        ]
