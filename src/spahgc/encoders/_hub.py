"""The Hugging Face hub: may these weights be had, from where, and what to say if not."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory

TIMEOUT = 5.0
"""Seconds that the hub has for the answer whether a model may be downloaded."""

_LOCK = threading.RLock()


def cached(repository: str) -> Path:
    """Where a repository lies in this machine's cache of the hub, if it does."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / _folder(repository)


def _folder(repository: str) -> str:
    return "models--" + repository.replace("/", "--")


@contextmanager
def loading(*, offline: bool = False, cache: Path | None = None) -> Iterator[None]:
    """Within this, no file that torch loads can run code, and the hub is asked as told.

    Parameters
    ----------
    offline
        Take what is in the cache, and do not ask the hub.
    cache
        Another cache of the hub than this machine's.
    """
    from huggingface_hub import constants

    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch obeys it even where a library asks for the contrary
    with _LOCK:  # these are settings of the process
        before = os.environ.get(name), constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE
        os.environ[name] = "1"
        constants.HF_HUB_OFFLINE = offline or before[1]
        constants.HF_HUB_CACHE = str(cache) if cache else before[2]
        try:
            yield
        finally:
            _, constants.HF_HUB_OFFLINE, constants.HF_HUB_CACHE = before
            if before[0] is None:
                del os.environ[name]
            else:
                os.environ[name] = before[0]


@contextmanager
def as_cache(repository: str, files: dict[str, Path]) -> Iterator[Path]:
    """A cache of the hub that holds one repository, made of links to local files."""
    revision = "0" * 40
    with TemporaryDirectory(prefix="spahgc-") as folder:
        root = Path(folder) / _folder(repository)
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(revision)
        for name, file in files.items():
            link = root / "snapshots" / revision / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        yield Path(folder)


def login_command() -> str:
    """How to log in with the installed version of huggingface_hub."""
    commands = {entry.name for entry in distribution("huggingface_hub").entry_points}
    return "hf auth login" if "hf" in commands else "huggingface-cli login"


def no_access(name: str, repository: str) -> PermissionError:
    """The error for a model whose conditions have not been accepted, or accepted by somebody who is not logged in."""
    return PermissionError(
        f"The hub does not give the weights of encoder {name!r} to this machine: the model is gated, and nobody is "
        "logged in here who accepted its conditions (or the token is no longer valid). Accept them on "
        f"https://huggingface.co/{repository}, then run `{login_command()}` here with a token of the same account. "
        f"Files that you have already: spahgc.encoders.load({name!r}, weights=<file or folder>)."
    )


def no_network(name: str, repository: str) -> ConnectionError:
    """The error for a model that is not on this machine while the hub cannot be reached."""
    from huggingface_hub import constants

    return ConnectionError(
        f"The weights of encoder {name!r} are not on this machine, and the Hugging Face hub ({constants.ENDPOINT}) "
        + ("is switched off (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "cannot be reached")
        + f". On a machine with a network run `hf download {repository} --local-dir {repository.split('/')[-1]}`, copy "
        f"that folder here and take it with spahgc.encoders.load({name!r}, weights=<the folder>). encoder='texture' "
        "needs no weights."
    )


def check_access(name: str, repository: str) -> None:
    """Ask the hub, once, whether the weights of a model may be downloaded from here.

    Raises
    ------
    PermissionError
        If the model is gated for whoever is logged in on this machine.
    ConnectionError
        If the hub cannot be reached, or is switched off.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError

    # Nothing that was raised goes on from here (`from None`): a request knows the token that it was made with.
    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json"), timeout=TIMEOUT)
    except EntryNotFoundError:
        return  # not every repository has this file; that it may be asked for is the answer
    except GatedRepoError:
        raise no_access(name, repository) from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in {401, 403, 404}:  # the hub does not tell the hidden from the missing, or refuses a bad token
            raise no_access(name, repository) from None
        raise ConnectionError(
            f"The Hugging Face hub answered {status} when asked for the weights of encoder {name!r} ({repository}). "
            f"Try again later, or take files that you have: spahgc.encoders.load({name!r}, weights=<file or folder>)."
        ) from None
    except Exception:  # noqa: BLE001 (what it raises depends on the HTTP client of its version)
        raise no_network(name, repository) from None
