"""Programs of the system that tests use."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def require(*names: str) -> str:
    """Return the path of a program; without it the test is skipped, save where CI is set."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        missing = f"none of {names} is installed"
        if "CI" in os.environ:
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def install(path: Path, *packages: str) -> None:
    """Install npm's packages in a folder; where that is not possible the test is skipped."""
    flags = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts")
    done = subprocess.run(
        [require("npm"), "install", "--prefer-offline", "--fetch-retries=5", *flags, *packages],
        cwd=path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if done.returncode:
        if "CI" in os.environ:
            pytest.fail(done.stderr)
        pytest.skip("npm cannot install the packages")
