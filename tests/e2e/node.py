"""Runs Node scripts of `tests/e2e/js`, whose packages `make test` installs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).parent / "js"
_TIMEOUT_S = 100


def run_script(name: str, *arguments: str, stdin: str = "") -> str:
    """Run a script to its end and return what it wrote."""
    node = shutil.which("node")
    assert node, "there is no node on PATH; the JavaScript clients need version 20 or later"
    assert (SCRIPTS / "node_modules").is_dir(), (
        f"the packages of {SCRIPTS} are missing: `make test` installs them, or `npm ci` in there"
    )
    done = subprocess.run(
        [node, str(SCRIPTS / name), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
