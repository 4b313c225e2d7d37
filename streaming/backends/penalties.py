"""Repetition, presence and frequency penalties."""

from __future__ import annotations

import torch

from streaming.sampling_params import SamplingParams
from streaming.sequence import Sequence


class Penalties:
    """The penalties of one sequence: repetition over prompt and output, the others over the output.

    What each token costs is kept in tensors of the vocabulary's size, at most 9 bytes a token, and
    updated with what is new. So a step costs the same however long the text is. A sequence that is
    preempted keeps its tokens, and its penalties stay right.

    Args:
        vocab_size: width of the logits.
        device: where they are.
    """

    def __init__(self, sequence: Sequence, *, vocab_size: int, device: torch.device) -> None:
        params = sequence.params
        self._sequence = sequence
        self._device = device
        self._is_seen: torch.Tensor | None = None  # (vocab_size,) bool
        self._counts: torch.Tensor | None = None  # (vocab_size,) float32: times in the output
        self._costs = torch.empty(0)  # (vocab_size,) float32: what that takes off the logit
        self._num_taken = sequence.num_prompt_tokens
        if params.repetition_penalty != 1.0:
            self._is_seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._num_taken = 0
        if params.presence_penalty or params.frequency_penalty:
            self._counts = torch.zeros(vocab_size, device=device)
            self._costs = torch.zeros(vocab_size, device=device)

    @staticmethod
    def are_wanted(params: SamplingParams) -> bool:
        return bool(
            params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty
        )

    def apply(self, logits: torch.Tensor) -> None:
        """Change the logits of the sequence's next token, (vocab_size,) float32, in place."""
        self._take_new()
        if self._is_seen is not None:
            penalty = self._sequence.params.repetition_penalty
            penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits.copy_(torch.where(self._is_seen, penalized, logits))
        if self._counts is not None:
            logits -= self._costs

    def _take_new(self) -> None:
        new_ids = self._sequence.token_ids[self._num_taken :]
        if self._is_seen is not None and new_ids:
            self._is_seen[self._indices(new_ids)] = True
        # Of the prompt, nothing counts as generated.
        generated = new_ids[max(0, self._sequence.num_prompt_tokens - self._num_taken) :]
        if self._counts is not None and generated:
            params, indices = self._sequence.params, self._indices(generated)
            self._counts.index_add_(0, indices, torch.ones(len(generated), device=self._device))
            self._costs[indices] = (
                params.presence_penalty + params.frequency_penalty * self._counts[indices]
            )
        self._num_taken += len(new_ids)

    def _indices(self, token_ids: list[int]) -> torch.Tensor:
        return torch.tensor(token_ids, dtype=torch.long, device=self._device)
