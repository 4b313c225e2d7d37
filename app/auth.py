"""Authentication: API keys, and the web origins whose pages may call."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from app.errors import ErrorInfo
from streaming import ANYONE

SUBPROTOCOL = "tokenwire.v1"
_KEY_SUBPROTOCOL = "tokenwire.key."

FORBIDDEN_ORIGIN = ErrorInfo(
    code="forbidden_origin",
    message="Pages of this origin are not allowed to call; add it to the setting allowed_origins.",
)
"""The error for a request that `is_origin_allowed` rejects."""


class Authenticator:
    """Checks API keys in constant time; stores their digests only.

    Args:
        api_keys: the valid keys; without any, every client is the same caller.
    """

    def __init__(self, api_keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in api_keys)

    @property
    def is_open(self) -> bool:
        """Whether no key is required."""
        return not self._digests

    def identify(self, key: str | None) -> str | None:
        """Return the caller's name, which is the same for the same key; None if not valid."""
        if self.is_open:
            return ANYONE
        if key is None:
            return None
        given = _digest(key)
        # Compare every digest, so that the time taken does not reveal which one matches.
        matches = [digest for digest in self._digests if hmac.compare_digest(digest, given)]
        return f"key_{matches[0][:8].hex()}" if matches else None


def bearer_key(authorization: str | None) -> str | None:
    """Return the key of an `Authorization: Bearer KEY` header (RFC 6750 §2.1), if there is one."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def subprotocol_key(subprotocols: Sequence[str]) -> str | None:
    """Return the key that a browser offers as a subprotocol, because it cannot set headers."""
    for name in subprotocols:
        if name.startswith(_KEY_SUBPROTOCOL):
            encoded = name.removeprefix(_KEY_SUBPROTOCOL)
            try:
                return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
            except (binascii.Error, UnicodeDecodeError):
                return None
    return None


def is_origin_allowed(origin: str | None, *, host: str | None, allowed: Sequence[str]) -> bool:
    """Return whether a page of `origin` may call; the server's own pages always may.

    Browsers let any page open a WebSocket to any server and send `Origin` with the handshake
    (RFC 6455 §10.2), so the server has to check it. A request without `Origin` is not from a page.

    Args:
        origin: the `Origin` header.
        host: the `Host` header.
        allowed: other origins that may call; `*` is any.
    """
    if origin is None or "*" in allowed or origin in allowed:
        return True
    try:
        name = urlsplit(origin).netloc
    except ValueError:  # malformed; no browser sends it
        return False
    return bool(host) and name.lower() == str(host).lower()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
