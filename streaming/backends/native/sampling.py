"""Samples tokens with the kernel in `sampling.cpp`: all rows in one call, on several threads.

Used instead of `sample_tokens` where the kernels are available.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as SequenceOf
from dataclasses import astuple

import torch

from streaming.backends.sampling.sampling import SamplingMetadata


class _Arguments(ctypes.Structure):
    """`Sampling` in `sampling.cpp`."""

    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("metadata", ctypes.c_void_p),
        ("token_ids", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("vocab_size", ctypes.c_int64),
        ("num_threads", ctypes.c_int64),
    )


def native_sample_tokens(
    kernels: ctypes.CDLL,
    logits: torch.Tensor,
    rows: SequenceOf[int],
    metadata: SequenceOf[SamplingMetadata],
) -> list[int]:
    """Return a token id for each of some rows, by the rules of `sample_tokens`.

    With its first argument bound, this is a `TokenSampler`.

    Args:
        kernels: as returned by `load_kernels`.
        logits: (num_sequences, vocab_size) float32 without NaN, on the CPU.
        rows: indices of rows with at least one finite logit.
        metadata: the parameters of each of these rows.

    Raises:
        TypeError: the logits are not (num_sequences, vocab_size) float32 on the CPU.
    """
    if logits.dtype is not torch.float32 or not logits.is_cpu or logits.dim() != 2:
        raise TypeError(
            "the kernel samples from rows of float32 on the CPU "
            f"(got {logits.dtype} {tuple(logits.shape)} on {logits.device})"
        )
    assert len(rows) == len(metadata)
    logits = logits.contiguous()
    row_ids = torch.tensor(rows, dtype=torch.int64)
    parameters = torch.tensor([astuple(each) for each in metadata], dtype=torch.float64)
    token_ids = torch.empty_like(row_ids)
    arguments = _Arguments(
        logits.data_ptr(),
        row_ids.data_ptr(),
        parameters.data_ptr(),
        token_ids.data_ptr(),
        len(row_ids),
        logits.shape[-1],
        torch.get_num_threads(),
    )
    kernels.tokenwire_sample(ctypes.byref(arguments))
    sampled: list[int] = token_ids.tolist()
    return sampled
