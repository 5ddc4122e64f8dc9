"""The settings object."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from anndata import AnnData

import spahgc
from spahgc._settings import Settings


@pytest.fixture
def settings() -> Settings:
    return Settings()


def test_defaults(settings: Settings) -> None:
    assert (settings.device, settings.batch_size, settings.progress, settings.n_jobs) == ("auto", 256, True, -1)
    assert isinstance(spahgc.settings, Settings)


def test_unknown_setting(settings: Settings) -> None:
    with pytest.raises(AttributeError, match="no setting 'devise'. Available: device, batch_size, progress"):
        settings.devise = "cpu"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("batch_size", value) for value in (-5, 0, 2.5, "many", None, True)],
        *[("device", value) for value in ("gpu7", "cuda:x", 0, None)],
        *[("max_nodes", value) for value in ("many", 0)],
        *[("n_jobs", value) for value in (0, 1.5)],
        *[("progress", value) for value in (1, "no")],
        *[("data_dir", value) for value in (3, None)],
    ],
)
def test_a_value_that_makes_no_sense(settings: Settings, name: str, value: object) -> None:
    before = getattr(settings, name)
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
        setattr(settings, name, value)
    assert getattr(settings, name) == before


def test_values_that_make_sense(settings: Settings) -> None:
    settings.device, settings.n_jobs = "cuda:1", -2
    assert (settings.device, settings.n_jobs) == ("cuda:1", -2)


def test_verbosity(settings: Settings) -> None:
    logger = logging.getLogger("spahgc")
    before = logger.level
    try:
        settings.verbosity = "debug"
        assert logger.level == logging.DEBUG
        with pytest.raises(
            ValueError, match="`verbosity` must be one of 'error', 'warning', 'info', 'debug', got 'loud'"
        ):
            settings.verbosity = "loud"
        assert settings.verbosity == "debug"
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(before)


@pytest.mark.parametrize(("name", "default"), [("data_dir", "spahgc"), ("cache_dir", "spahgc/embeddings")])
def test_folders(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, default: str) -> None:
    setattr(settings, name, "somewhere")
    assert getattr(settings, name) == Path("somewhere")
    variable = f"SPAHGC_{name.upper()}"
    for value, expected in ((str(tmp_path), tmp_path), ("", Path.home() / ".cache" / default)):
        monkeypatch.setenv(variable, value)
        assert getattr(Settings(), name) == expected
    monkeypatch.delenv(variable)
    assert getattr(Settings(), name) == expected


def test_device(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert settings.torch_device() == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(ValueError, match=f"Device '{name}' is not available.*'auto' or 'cpu'"):
            settings.torch_device(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert settings.torch_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settings.torch_device() == torch.device("cuda")
    assert settings.torch_device("cpu") == torch.device("cpu")
    settings.device = "cpu"
    assert settings.torch_device() == torch.device("cpu")
    assert settings.torch_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="`device` must be 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', got 'gpu'"):
        settings.torch_device("gpu")


def test_workers(settings: Settings) -> None:
    cores = settings.workers(-1)
    assert cores >= 1
    assert settings.workers() == cores
    assert settings.workers(3) == 3
    assert settings.workers(-cores) == 1
    assert settings.workers(-cores - 5) == 1
    with pytest.raises(ValueError, match=r"`n_jobs` must be an integer other than 0 \(-1 uses all cores\), got 0"):
        settings.workers(0)


def test_a_setting_is_what_none_means(monkeypatch: pytest.MonkeyPatch, planted: Callable[..., AnnData]) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(spahgc.settings, "device", "cuda")
    reference, target = planted({"A1": "A", "B1": "B"}), planted({"T1": "C"})
    options = {"panel": 3, "preset": "paper", "method_params": {"network": {"epochs": 1, "hidden": 8}}}
    with pytest.raises(ValueError, match="Device 'cuda' is not available"):
        spahgc.tl.train(reference, **options)
    model = spahgc.tl.train(reference, device="cpu", **options)
    with pytest.raises(ValueError, match="Device 'cuda' is not available"):
        spahgc.tl.predict(model, target)
    assert "spahgc" not in target.obsm
    spahgc.tl.predict(model, target, device="cpu")
    assert "spahgc" in target.obsm


def test_importing_says_nothing_and_sets_no_handler() -> None:
    code = "import logging, spahgc; print(logging.getLogger('spahgc').handlers, logging.getLogger().handlers)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.stdout.strip() == "[] []"
    assert done.stderr == ""
