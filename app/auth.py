"""Who is calling: API keys, and which pages may call in a browser's name."""

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
    """Checks keys in constant time and names their owners; keeps digests, not keys.

    Args:
        api_keys: keys that may call; with none, everyone is the same caller.
    """

    def __init__(self, api_keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in api_keys)

    @property
    def is_open(self) -> bool:
        return not self._digests

    def identify(self, key: str | None) -> str | None:
        """Return the caller's name, the same for the same key; None refuses."""
        if self.is_open:
            return ANYONE
        if key is None:
            return None
        given = _digest(key)
        # Every digest is compared, so that the time taken does not tell which one came close.
        matches = [digest for digest in self._digests if hmac.compare_digest(digest, given)]
        return f"key_{matches[0][:8].hex()}" if matches else None


def bearer_key(authorization: str | None) -> str | None:
    """Return the key of an `Authorization: Bearer KEY` header (RFC 6750 §2.1)."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def subprotocol_key(subprotocols: Sequence[str]) -> str | None:
    """Return the key that a browser, which cannot set headers, offers as a subprotocol."""
    for name in subprotocols:
        if name.startswith(_KEY_SUBPROTOCOL):
            encoded = name.removeprefix(_KEY_SUBPROTOCOL)
            try:
                return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
            except (binascii.Error, UnicodeDecodeError):
                return None
    return None


def is_origin_allowed(origin: str | None, *, host: str | None, allowed: Sequence[str]) -> bool:
    """Return whether a page of `origin` may call: no origin is no page, and our own always may.

    Browsers send `Origin` with every WebSocket handshake (RFC 6455 §10.2) and let any page open
    one, so it is the server that must look.
    """
    if origin is None or "*" in allowed or origin in allowed:
        return True
    try:
        name = urlsplit(origin).netloc
    except ValueError:  # no browser sends such a one
        return False
    return bool(host) and name.lower() == str(host).lower()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
