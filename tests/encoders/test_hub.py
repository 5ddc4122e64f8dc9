"""The Hugging Face hub, played by a server on this machine: gated, unreachable, and giving what it has."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

from spahgc.encoders import load

pytestmark = pytest.mark.usefixtures("models")

TOKEN = "hf_thisIsASecretThatNobodyMaySee"
COMMIT = "1" * 40


class Hub(ThreadingHTTPServer):
    """A hub: the files of its repositories by path, or gated; it remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.gated = False
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if not self.path.startswith("/api/agent"):  # huggingface_hub looks for what it runs in
            self.server.asked.append(self.path)
            self.server.tokens.add(self.headers.get("Authorization"))
        repository, _, name = self.path.lstrip("/").partition("/resolve/")
        content = self.server.files.get(f"{repository}/{name.partition('/')[2]}")
        code = {"X-Repo-Commit": COMMIT}
        if self.server.gated:
            status, content = 403 if self.headers.get("Authorization") else 401, b""
            code |= {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {repository} is restricted."}
        elif content is None:
            status, content = 404, b""
            code |= {"X-Error-Code": "EntryNotFound"}
        else:
            status = 200
            code |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self.send_response(status)
        for key, value in {**code, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


def point_to(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        point_to(f"http://127.0.0.1:{server.server_port}", tmp_path / "cache", monkeypatch)
        yield server
        server.shutdown()


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_to(f"http://127.0.0.1:{port}", tmp_path / "cache", monkeypatch)


def test_gated(server: Hub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """One question, no retries: the page to accept, the command to log in, and nowhere the token."""
    server.gated = True
    caplog.set_level(logging.DEBUG)
    start = time.process_time()
    with pytest.raises(PermissionError) as raised:
        load("uni2")
    assert time.process_time() - start < 1
    assert server.asked == ["/MahmoodLab/UNI2-h/resolve/main/config.json"]
    assert server.tokens == {f"Bearer {TOKEN}"}  # it was sent, so there is something to hide
    message = str(raised.value)
    assert "'uni2'" in message
    assert "https://huggingface.co/MahmoodLab/UNI2-h, then run `hf auth login`" in message
    assert "load('uni2', weights=<file or folder>)" in message
    shown = "".join(traceback.format_exception(raised.value))
    printed = "".join(capfd.readouterr())
    assert not any("SecretThat" in text for text in (message, shown, caplog.text, printed))


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, PermissionError, "or its token is no longer valid"),  # what the hub hides it says not to be there
        (500, ConnectionError, "hub .* answered 500. Try again later, .*MahmoodLab/UNI2-h"),
    ],
)
def test_a_hub_that_refuses_or_fails(
    server: Hub, monkeypatch: pytest.MonkeyPatch, status: int, error: type[Exception], message: str
) -> None:
    def answer(self: Answer) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    monkeypatch.setattr(Answer, "do_GET", answer)
    with pytest.raises(error, match=message):
        load("uni2")


def test_no_network(unreachable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.process_time()
    with pytest.raises(ConnectionError) as raised:
        load("virchow2")
    assert time.process_time() - start < 1
    message = str(raised.value)
    assert "Could not download the weights of encoder 'virchow2'" in message
    assert "cannot be reached" in message
    assert "hf download paige-ai/Virchow2" in message
    assert "models--paige-ai--Virchow2" in message
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="is switched off .HF_HUB_OFFLINE is set"):
        load("resnet50")


def test_download_then_offline(
    server: Hub, tiny_file: Path, tmp_path: Path, tiles: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name: downloaded once, then taken from the cache without asking the hub; the same as from the file."""
    from safetensors.torch import save

    repository, name = "timm/test_vit.r160_in1k", "timm:test_vit.r160_in1k"
    server.files[f"{repository}/model.safetensors"] = save(torch.load(tiny_file, weights_only=True))
    first = load(name)
    assert any(path.endswith("model.safetensors") for path in server.asked)
    server.asked.clear()
    server.gated = True
    second = load(name)
    assert server.asked == []
    local = load(name, weights=tiny_file)
    given = tiles(1, 168)
    np.testing.assert_array_equal(first.encode(given), second.encode(given))
    np.testing.assert_array_equal(first.encode(given), local.encode(given))
    assert first.recipe == second.recipe == local.recipe

    # A part of it in the cache is no model: the hub is asked.
    snapshot = tmp_path / "cache" / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(PermissionError, match="'test_vit.r160_in1k'"):
        load(name)
    # And damaged weights in the cache are no reason to ask it.
    (snapshot / "model.safetensors").write_bytes(b"damaged" * 9)
    server.asked.clear()
    with pytest.raises(ValueError, match=r"cache.*weights of encoder 'test_vit.r160_in1k'.*download it again"):
        load(name)
    assert server.asked == []


@pytest.mark.parametrize("value", [None, "0"])
def test_settings_of_the_process_are_restored(models: Any, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    if value is not None:
        monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", value)
    with suppress(KeyError), models._weights_only():
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
        raise KeyError
    assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") == value


def test_no_file_can_run_code_whatever_a_library_asks_for(models: Any, tmp_path: Path) -> None:
    import pickle

    file = tmp_path / "a.pt"
    torch.save({"a": Path("a")}, file)
    torch.load(file, weights_only=False)
    with models._weights_only(), pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(file, weights_only=False)


def asked_by(model: Any, models: Any, server: Hub) -> str | None:
    """The repository that a model asks the hub for first; `None` if it never gets that far here."""
    server.asked.clear()
    try:
        with models._weights_only(), torch.device("meta"):
            model()
    except Exception:  # noqa: BLE001 (it is refused, in one way or another)
        pass
    return server.asked[0].removeprefix("/api/models").removeprefix("/") if server.asked else None


def test_every_model_asks_for_the_repository_that_is_checked(models: Any, server: Hub, tmp_path: Path) -> None:
    """The question whether a model may be had is put to the repository that it is had from."""
    server.gated = True
    seen = {name: asked_by(model, models, server) for name, model in models.registry().items()}
    asked = {name: path for name, path in seen.items() if path is not None}
    wrong = {
        name: path
        for name, path in asked.items()
        if not f"{path}/".startswith(models.repository_of(name, models.registry()[name]) + "/")
    }
    assert wrong == {}
    assert {"uni", "uni2", "virchow2", "gigapath", "h-optimus-0", "phikonv2", "ctranspath", "midnight"} <= set(asked)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
