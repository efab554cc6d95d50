"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real scene pairs, which the repository does not hold: beside it, or where HISEM_SHARED_DATA says."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HISEM_SHARED_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"real scene pairs are not at {folder}; set HISEM_SHARED_DATA to their folder")
    return folder
