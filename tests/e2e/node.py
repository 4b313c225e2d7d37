"""Runs the Node.js scripts in `tests/e2e/js`. `make test` installs their packages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).parent / "js"
_TIMEOUT_S = 100


def run_script(name: str, *arguments: str, stdin: str = "") -> str:
    """Run a script and return its standard output."""
    node = shutil.which("node")
    assert node, "node is not on PATH; install Node.js 20 or later"
    assert (SCRIPTS / "node_modules").is_dir(), (
        f"the packages of {SCRIPTS} are not installed; run `make test`, or `npm ci` in that folder"
    )
    result = subprocess.run(
        [node, str(SCRIPTS / name), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
