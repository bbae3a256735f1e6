"""Shared by all tests: no test touches the user's store, data or progress bars."""

import pytest


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """Point the environment variables into the test's folder."""
    monkeypatch.setenv("RELUFAIR_STORE", str(tmp_path / "store"))
    for name in ("OUT", "PROGRESS", "PUBLISHED", "RECORD"):
        monkeypatch.delenv(f"RELUFAIR_{name}", raising=False)
