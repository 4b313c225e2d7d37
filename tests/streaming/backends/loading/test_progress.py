from __future__ import annotations

import threading

import pytest
from transformers.utils import logging as transformers_logging

from streaming.backends.loading.progress import progress_bar, quiet_transformers


def test_bar_reports_between_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    reports: list[tuple[str, float | None]] = []
    bar = progress_bar(lambda *report: reports.append(report), "Working", start=0.5, end=0.9)
    num_threads = threading.active_count()
    for _ in bar(range(4), desc="theirs", mininterval=0.0):
        pass
    assert {text for text, _ in reports} == {"Working"}
    fractions = [fraction for _, fraction in reports]
    assert fractions[0] == 0.5
    assert fractions[-1] == pytest.approx(0.9)
    assert fractions == sorted(fractions)  # type: ignore[type-var]
    assert capsys.readouterr() == ("", "")
    assert threading.active_count() == num_threads


def test_bar_without_total_reports_no_fraction() -> None:
    reports: list[float | None] = []
    bar = progress_bar(lambda _, fraction: reports.append(fraction), "Working")
    with bar(total=None, mininterval=0.0) as shown:
        shown.update(3)
    assert set(reports) == {None}


def test_only_the_named_bar_reports() -> None:
    reports: list[str] = []
    bar = progress_bar(lambda text, _: reports.append(text), "Working", name="bytes")
    for name in ("files", None, "bytes"):
        before = len(reports)
        bar(total=3, name=name).close()
        assert (len(reports) > before) is (name == "bytes")


def test_transformers_reports_through_the_bar_and_is_restored() -> None:
    reports: list[str] = []
    verbosity = transformers_logging.get_verbosity()
    with quiet_transformers(progress_bar(lambda text, _: reports.append(text), "Loading")):
        assert transformers_logging.get_verbosity() == transformers_logging.ERROR
        list(transformers_logging.tqdm(range(2)))
    assert set(reports) == {"Loading"}
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.set_tqdm_hook(None) is None
