"""The generated tables of `docs/`: `python -m tests.doc_tables` brings them up to date."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from app.errors import ERRORS
from app.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"


def settings_table() -> str:
    """Return the table of all settings, with defaults and descriptions."""
    lines = ["| setting | default | what it does |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `{name}` | {_shown(field.default)} | {field.description} |")
    return "\n".join(lines)


def errors_table() -> str:
    """Return the table of all error codes, with HTTP status and close code."""
    lines = ["| code | status | retryable | closes the socket with |", "|---|---|---|---|"]
    for code, row in ERRORS.items():
        retry = "yes" if row.retryable else ""
        lines.append(f"| `{code}` | {row.http_status} | {retry} | {row.close_code or ''} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Table:
    """A table between `<!-- name -->` and `<!-- /name -->` in a page.

    Attributes:
        page: the page's file.
        name: the name in the marks.
        render: returns the table as Markdown.
    """

    page: Path
    name: str
    render: Callable[[], str]

    @property
    def written(self) -> str:
        """The table as it stands in the page."""
        found = re.search(self._pattern, self.page.read_text(), re.DOTALL)
        assert found, f"{self.page} has no marks for {self.name}"
        return found[1]

    def write(self) -> None:
        """Bring the page up to date."""
        filled = f"<!-- {self.name} -->\n{self.render()}\n<!-- /{self.name} -->"
        text = re.sub(self._pattern, lambda _: filled, self.page.read_text(), flags=re.DOTALL)
        self.page.write_text(text)

    @property
    def _pattern(self) -> str:
        return rf"<!-- {self.name} -->\n(.*?)\n?<!-- /{self.name} -->"


TABLES = (
    Table(DOCS / "settings.md", "settings", settings_table),
    Table(DOCS / "errors.md", "errors", errors_table),
)


def _shown(default: object) -> str:
    if default in (None, ()):
        return ""
    value = default.value if isinstance(default, Enum) else default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    for table in TABLES:
        table.write()
