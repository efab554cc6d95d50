"""What a run was made with: versions of packages, and the state of the source in git. Never fails a run."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from hisem import __version__

PACKAGES = ("torch", "ray", "timm", "numpy", "pyarrow", "rasterio", "mlflow")
GIT_SECONDS = 10
"""How long git may take."""

COMMIT_VARIABLE = "HISEM_GIT_COMMIT"
"""Names the commit where there is no checkout: an image or a submitted job has no `.git`."""


def versions() -> dict[str, str]:
    """Versions of hisem, python, PACKAGES and `cuda` (the one torch is built for), as installed; absent ones left out.

    Read from the packages' metadata: none of them is imported.
    """
    found = {"hisem": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = distribution(name).version
        except PackageNotFoundError:
            continue
    return found | ({"cuda": cuda} if (cuda := _cuda()) else {})


def git_state(folder: Path | None = None) -> dict[str, str]:
    """`commit`, `branch` (absent on a detached head) and `dirty` (`no`, or `yes, 3 files`) of the checkout of `folder`.

    By default that is the checkout hisem is imported from, else the one of the working directory. Without a
    checkout or git, `$HISEM_GIT_COMMIT` stands in for the commit, and `commit_source` names it; else nothing is
    returned.
    """
    where = folder or _source()
    commit = _git(where, "rev-parse", "HEAD")
    if not commit:
        stated = os.environ.get(COMMIT_VARIABLE, "")
        return {"commit": stated, "commit_source": COMMIT_VARIABLE} if stated else {}
    state = {"commit": commit}
    if branch := _git(where, "branch", "--show-current"):
        state["branch"] = branch
    if (changes := _git(where, "status", "--porcelain")) is not None:
        count = len(changes.splitlines())
        state["dirty"] = f"yes, {count} file{'s' if count > 1 else ''}" if count else "no"
    return state


def _source() -> Path:
    """The checkout hisem lies in, else the working directory. An installed package may lie below a stranger's."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / ".git").exists() else Path.cwd()


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None where it fails, is absent or takes too long."""
    # Without locks: a look at a checkout must not get in the way of someone who commits there.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_SECONDS,
            check=True,
            encoding="utf-8",
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cuda() -> str | None:
    """The CUDA that torch was built for, from the file in which torch notes it."""
    try:
        noted = Path(str(distribution("torch").locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except (PackageNotFoundError, OSError):
        return None
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)", noted, re.MULTILINE)
    return match[1] if match else None
