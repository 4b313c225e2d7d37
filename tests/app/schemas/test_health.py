from __future__ import annotations

import pytest
from pydantic import ValidationError

from app.schemas.health import Liveness, ServerStatus, StoreHealth, StoreStatus


@pytest.mark.parametrize("status", ["ok", "loading", "draining", "failed"])
def test_a_status_is_written_as_its_value(status: str):
    assert Liveness(status=ServerStatus(status)).model_dump_json() == f'{{"status":"{status}"}}'


def test_a_store_always_reports_its_reason():
    """Null where there is none, so that a client needs no default."""
    with pytest.raises(ValidationError):
        StoreHealth(status=StoreStatus.OFF)  # type: ignore[call-arg]
    off = StoreHealth(status=StoreStatus.OFF, reason=None)
    assert off.model_dump(mode="json") == {"status": "off", "reason": None}
