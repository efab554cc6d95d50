"""No file names a host that packages come from: which index is asked is for the machine's configuration to say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOSTS = ("pypi org", "files pythonhosted org", "registry npmjs org", "download pytorch org", "conda anaconda org")
"""With blanks for the dots, so that this file names none of them."""


def test_no_tracked_file_names_a_package_index() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("needs the files that git tracks, and this is no checkout")
    pattern = re.compile("|".join(re.escape(host.replace(" ", ".")) for host in HOSTS).encode(), re.IGNORECASE)
    named = {}
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.is_file() and (found := pattern.search(path.read_bytes())):
            named[name] = found[0]
    assert named == {}
