"""What requests for several choices share: `/v1/completions` and `/v1/chat/completions`."""

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
    include_usage: bool | None = Field(
        False, description="One more chunk before the end, with the usage and no choices."
    )
    include_obfuscation: Literal[False] | None = Field(
        None, description="Chunks are never padded: only `false`."
    )


class ChoiceFields(SamplingFields):
    """A request for choices. Unknown fields are errors; `null` means the default."""

    model: Name | None = Field(
        None, description="The model that is wanted; without it, the one that is served."
    )
    n: int | None = Field(
        1,
        description="Choices for each prompt: choice k of prompt p has the `index` p × n + k, and "
        "where a `seed` is given it uses seed + k; after the greatest seed comes the least.",
    )
    stream: bool | None = Field(False, description="Answer with Server-Sent Events.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    return_token_ids: bool | None = Field(
        False, description="Choices tell their tokens, in `token_ids`."
    )
    user: Name | None = Field(None, description="The caller's own label, kept with the generation.")

    @model_validator(mode="before")
    @classmethod
    def _drop_absent(cls, fields: Any) -> Any:
        """Take `null` for absent also where nothing else is supported."""
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
        return 1 if self.n is None else self.n

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def check_choices(self, *, num_prompts: int, max_choices: int) -> None:
        """Refuse what no parameter of the engine stands for.

        Raises:
            InvalidRequest: there are too many choices, or none; or fields contradict each other.
        """
        num_choices = self.num_choices_per_prompt
        if num_choices < 1:
            raise InvalidRequest(param="n", reason=f"must be at least 1, not {self.n}")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest(param="stream_options", reason="is only allowed with stream")
        if num_prompts * num_choices > max_choices:
            raise InvalidRequest(
                param="prompt" if num_prompts > max_choices else "n",
                reason=f"{num_prompts} prompts with n = {num_choices} make "
                f"{num_prompts * num_choices} choices; this server takes {max_choices} at once",
            )

    def to_choices(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        caller: str,
        metadata: Mapping[str, str] | None = None,
    ) -> list[GenerationRequest]:
        """Return one request for each choice, in the order of the answer.

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
