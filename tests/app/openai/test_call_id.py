from __future__ import annotations

import re

from app.openai.call_id import call_id

from tests.support import make_generation


def test_an_id_is_of_one_call_of_one_log_and_always_the_same():
    logs = [make_generation("gen_1"), make_generation("gen_2")]
    ids = [call_id(log, index) for log in logs for index in range(3)]
    assert len(set(ids)) == 6
    assert ids == [call_id(log, index) for log in logs for index in range(3)]
    assert all(re.fullmatch("call_[0-9a-f]{24}", each) for each in ids)
