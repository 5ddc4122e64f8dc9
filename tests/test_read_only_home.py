"""A home and a package that cannot be written."""

from __future__ import annotations

import logging

import numba
import pytest

from spahgc import _settings


def test_kernels_are_compiled_without_a_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    with caplog.at_level(logging.WARNING, "spahgc"):
        double = _settings.compiled()(lambda x: 2 * x)
    assert double(2.5) == 5.0
    assert "Set NUMBA_CACHE_DIR" in caplog.text
