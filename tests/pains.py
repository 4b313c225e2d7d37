"""The tests that pains.md names, from their marks: `python -m tests.pains` brings it up to date."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS / "pains.md"
_LIST = re.compile(r"(<!-- tests of (\d+) -->\n).*?(<!-- /tests -->)", re.DOTALL)


@cache
def marked_tests() -> dict[int, dict[str, list[str]]]:
    """Return the tests with `@pytest.mark.pain(number)`: number, file, names in their order."""
    found: dict[int, dict[str, list[str]]] = defaultdict(dict)
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text()
        for number, name in _marks(ast.parse(text)) if "mark.pain" in text else ():
            found[number].setdefault(path.relative_to(TESTS).as_posix(), []).append(name)
    return found


def filled(page: str) -> str:
    """Return the page with each of its lists made anew."""
    tests = marked_tests()

    def fill(match: re.Match[str]) -> str:
        files = tests[int(match[2])]
        lines = [
            f"- [{path}]({path}): {', '.join(f'`{name}`' for name in names)}\n"
            for path, names in files.items()
        ]
        return f"{match[1]}{''.join(lines)}{match[3]}"

    return _LIST.sub(fill, page)


def listed_numbers(page: str) -> list[int]:
    return [int(match[2]) for match in _LIST.finditer(page)]


def _marks(module: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for mark in node.decorator_list:
                match mark:
                    case ast.Call(
                        func=ast.Attribute(attr="pain"), args=[ast.Constant(value=int(number))]
                    ):
                        yield number, node.name


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
