"""The README's tables, from the code: `python -m tests.readme_tables` brings them up to date."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

from app.errors import ERRORS
from app.settings import Settings

README = Path(__file__).parent.parent / "README.md"


def settings_table() -> str:
    lines = ["| setting | default | what it does |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        lines.append(f"| `{name}` | {_shown(field.default)} | {field.description} |")
    return "\n".join(lines)


def errors_table() -> str:
    lines = ["| code | status | retry | closes the socket |", "|---|---|---|---|"]
    for code, row in ERRORS.items():
        retry = "yes" if row.retryable else ""
        lines.append(f"| `{code}` | {row.http_status} | {retry} | {row.close_code or ''} |")
    return "\n".join(lines)


TABLES = {"settings": settings_table, "errors": errors_table}


def section(text: str, name: str) -> str:
    """Return what stands between the marks of a table."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", text, re.DOTALL)
    assert found, f"the README has no marks for {name}"
    return found[1]


def main() -> None:
    text = README.read_text()
    for name, table in TABLES.items():
        marks = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
        filled = f"<!-- {name} -->\n{table()}\n<!-- /{name} -->"
        text = re.sub(marks, lambda _, filled=filled: filled, text, flags=re.DOTALL)  # type: ignore[misc]
    README.write_text(text)


def _shown(default: object) -> str:
    if default in (None, ()):
        return ""
    value = default.value if isinstance(default, Enum) else default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    main()
