"""Fixtures of the tests of lnca_data."""

import pytest


@pytest.fixture(autouse=True)
def cache_home(monkeypatch, tmp_path_factory):
    """The user's cache folder: an empty one for each test."""
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('XDG_CACHE_HOME', str(folder))
    return folder
