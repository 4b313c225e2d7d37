"""The content of a compaction item: a summary, in a form that clients pass on unread.

The dialect calls it encrypted; ours is only encoded. It holds nothing that its client has not sent
or got, and a client that forges one tells the model no more than it could in a message.
"""

from __future__ import annotations

import base64
import binascii

_PREFIX = "tokenwire.summary.v1."


def encode_summary(summary: str) -> str:
    """Return the content for a summary."""
    return _PREFIX + base64.urlsafe_b64encode(summary.encode()).decode()


def decode_summary(content: str) -> str:
    """Return the summary.

    Raises:
        ValueError: the content is none of ours.
    """
    if not content.startswith(_PREFIX):
        raise ValueError("is no content of this server's")
    try:
        return base64.b64decode(
            content.removeprefix(_PREFIX).encode(), altchars=b"-_", validate=True
        ).decode()
    except (binascii.Error, UnicodeError) as error:
        raise ValueError("is no content of this server's") from error
