"""Draw tokens by a kernel of ours, see `sampling.cpp`: all rows at once, each by its own rules."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as SequenceOf
from dataclasses import astuple

import torch

from streaming.backends.sampling.sampling import SamplingMetadata


class _Arguments(ctypes.Structure):
    """`Draw` in `sampling.cpp`."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("rules", ctypes.c_void_p),
        ("token_ids", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("vocab_size", ctypes.c_int64),
        ("num_threads", ctypes.c_int64),
    )


def native_sample_tokens(
    kernels: ctypes.CDLL,
    logits: torch.Tensor,
    rows: SequenceOf[int],
    rules: SequenceOf[SamplingMetadata],
) -> list[int]:
    """Draw as `sample_tokens` does: a `Draw`, but for its first argument.

    Raises:
        TypeError: the logits are not (num_sequences, vocab_size) float32 on the CPU.
    """
    if logits.dtype is not torch.float32 or not logits.is_cpu or logits.dim() != 2:
        raise TypeError(
            "the kernel draws from rows of float32 on the CPU, not from "
            f"{logits.dtype} {tuple(logits.shape)} on {logits.device}"
        )
    assert len(rows) == len(rules)
    logits = logits.contiguous()
    row_ids = torch.tensor(rows, dtype=torch.int64)
    numbers = torch.tensor([astuple(rule) for rule in rules], dtype=torch.float64)
    token_ids = torch.empty_like(row_ids)
    arguments = _Arguments(
        logits.data_ptr(),
        row_ids.data_ptr(),
        numbers.data_ptr(),
        token_ids.data_ptr(),
        len(row_ids),
        logits.shape[-1],
        torch.get_num_threads(),
    )
    kernels.tokenwire_sample(ctypes.byref(arguments))
    drawn: list[int] = token_ids.tolist()
    return drawn
