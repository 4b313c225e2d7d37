"""Repetition, presence and frequency penalties, applied to the logits of one sequence."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch.nn.functional import pad

from streaming.backend import SequenceInput

_MIN_CAPACITY = 64


class Penalties:
    """The penalties of one sequence: repetition over prompt and output, the others over the output.

    Each different token has a slot with its id and the cost of its count. A step updates only the
    slots of its new tokens, so its time does not grow with the text. Memory grows with the number
    of different tokens: 12 bytes of tensors and an entry in a dict and in a list for each. A
    preempted sequence keeps its tokens, so its counts stay valid.

    Args:
        sequence: the sequence, with its parameters.
        device: the device of the logits.
    """

    def __init__(self, sequence: SequenceInput, *, device: torch.device) -> None:
        params = sequence.params
        self._sequence = sequence
        self._device = device
        # Without a repetition penalty, the prompt does not count.
        self.num_taken = sequence.num_prompt_tokens if params.repetition_penalty == 1.0 else 0
        """Tokens at the beginning of the text that are counted, or that do not count."""
        self._slots: dict[int, int] = {}  # of each different token
        self._counts: list[int] = []  # of each slot: how often its token is in the output
        # Both have spare capacity, so that they grow rarely.
        self._ids = torch.zeros(_MIN_CAPACITY, dtype=torch.long, device=device)
        self._costs = torch.zeros(_MIN_CAPACITY, dtype=torch.float32, device=device)

    def apply(self, logits: torch.Tensor, text_ids: SequenceOf[int]) -> None:
        """Apply the penalties to the logits of the sequence's next token, in place.

        Args:
            logits: (vocab_size,) float32.
            text_ids: token ids of prompt and output. The first `num_taken` must be the same as in
                earlier calls.
        """
        self._take(text_ids[self.num_taken :])
        num_slots, penalty = len(self._slots), self._sequence.params.repetition_penalty
        ids = self._ids[:num_slots]
        values = logits[ids]
        if penalty != 1.0:
            values = torch.where(values > 0, values / penalty, values * penalty)
        logits[ids] = values - self._costs[:num_slots]

    def _take(self, token_ids: SequenceOf[int]) -> None:
        """Add slots for new tokens, and count the tokens of the output."""
        params, num_slots = self._sequence.params, len(self._slots)
        new_ids: list[int] = []
        counted: set[int] = set()
        for position, token_id in enumerate(token_ids, start=self.num_taken):
            if (slot := self._slots.get(token_id)) is None:
                slot = self._slots[token_id] = len(self._slots)
                self._counts.append(0)
                new_ids.append(token_id)
            if position >= self._sequence.num_prompt_tokens:
                self._counts[slot] += 1
                counted.add(slot)
        self.num_taken += len(token_ids)
        if new_ids:
            self._grow()
            self._ids[num_slots : len(self._slots)] = self._tensor(new_ids, torch.long)
        if counted and (params.presence_penalty or params.frequency_penalty):
            slots = list(counted)
            counts = self._tensor([self._counts[slot] for slot in slots], torch.float32)
            costs = params.presence_penalty + params.frequency_penalty * counts
            self._costs[self._tensor(slots, torch.long)] = costs

    def _grow(self) -> None:
        """Extend the tensors to all slots. Doubling keeps the average cost of a token constant."""
        num_missing = len(self._slots) - len(self._ids)
        if num_missing > 0:
            padding = (0, max(num_missing, len(self._ids)))
            self._ids, self._costs = pad(self._ids, padding), pad(self._costs, padding)

    def _tensor(self, values: list[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device)
