from __future__ import annotations

import pytest

from app.responses.schemas.items import decode_summary, encode_summary


@pytest.mark.parametrize("summary", ["", "hello", "h€llo 👋\n" * 100])
def test_a_summary_comes_back_as_it_was(summary: str):
    assert decode_summary(encode_summary(summary)) == summary


@pytest.mark.parametrize(
    "content",
    [
        "",
        "gAAAAA",
        encode_summary("a")[:-1],
        encode_summary("a") + "é",
        encode_summary("") + "_w==",
    ],
)
def test_other_content_is_refused(content: str):
    with pytest.raises(ValueError, match="was not made by this server"):
        decode_summary(content)
