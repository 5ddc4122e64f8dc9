"""Files of published data sets: where they are, and how they are downloaded."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pooch
import requests
from filelock import FileLock
from pooch import HTTPDownloader

from .._checks import format_names
from .._settings import settings

CHUNK = 2**16  # bytes that are written at a time

# Paths that each file of a slide may have, the preferred one first; counts come first.
Candidates = Mapping[str, Sequence[Path]]
# URL of a file, its path in the folder of the data set, and its checksum.
Address = tuple[str, str, str | None]


def find_slides(
    dataset: str,
    folder: Path,
    slides: Sequence[str] | None,
    *,
    download: bool,
    published: Sequence[str],
    candidates: Callable[[str], Candidates],
    addresses: Callable[[str], Iterable[Address]],
    by_hand: str,
    names: Sequence[str] | None = None,
) -> dict[str, dict[str, Path]]:
    """Files of the slides asked for, else all in the folder, else all `published` ones; `names` may be in the folder.

    Missing files are downloaded if `download`.
    """
    if slides is not None and not len(slides):
        raise ValueError("`slides` is empty. Pass None to read all slides.")
    missing = {name: _missing(candidates(name)) for name in (published if names is None else names)}
    local = [name for name, lacks in missing.items() if (not lacks if download else lacks != "counts")]
    remote = published if download else ()
    if not local and not remote:
        expected = format_names(options[0] for options in candidates(published[0]).values())
        raise FileNotFoundError(f"No slides of {dataset} in {str(folder)!r}. Expected files: {expected}; {by_hand}.")
    wanted = list(dict.fromkeys(slides or local or remote))
    if unknown := [name for name in wanted if name not in {*local, *remote}]:
        raise ValueError(
            f"No slide {format_names(unknown)} in {dataset}. Available in {str(folder)!r}: "
            f"{format_names(local, most=40)}; to download: {format_names(remote, most=40)}. Otherwise {by_hand}."
        )
    found = {}
    for name in wanted:
        if download and _missing(candidates(name)):
            for url, file, checksum in addresses(name):
                archive = fetch(url, folder, file, checksum=checksum, by_hand=by_hand)
                if file.endswith(".tar.gz"):
                    unpack(archive, archive.parent)
        paths = candidates(name)
        if lost := _missing(paths):
            place, options = paths[lost][0].parent, dict.fromkeys(path.name for path in paths[lost])
            raise FileNotFoundError(
                f"Slide {name!r} of {dataset} is incomplete: no {' or '.join(options)} in {str(place)!r}, which has "
                f"{format_names(sorted(path.name for path in place.glob('*')))}."
            )
        found[name] = {key: next(path for path in places if path.is_file()) for key, places in paths.items()}
    return found


def _missing(paths: Candidates) -> str:
    """First file of a slide that does not exist; empty if all do."""
    return next((key for key, options in paths.items() if not any(path.is_file() for path in options)), "")


def fetch(url: str, folder: Path, name: str, *, checksum: str | None = None, by_hand: str) -> Path:
    """Download a file unless it exists with the right checksum; ConnectionError or ValueError says what failed."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    # Wait 20 seconds for a connection and 60 for the next bytes.
    downloader = HTTPDownloader(progressbar=settings.progress, chunk_size=CHUNK, timeout=(20, 60))
    # Jobs of a cluster that start together share the folder.
    with FileLock(folder / ".lock"):
        try:
            pooch.retrieve(url, known_hash=checksum, fname=target.name, path=target.parent, downloader=downloader)
        except (requests.exceptions.RequestException, ConnectionError) as error:
            raise ConnectionError(f"Could not download {url}: {error}. Try again, or {by_hand}.") from error
        except ValueError as error:
            raise ValueError(
                f"{url} is not the file that spahgc knows (expected {checksum}); nothing was kept. If you trust the "
                f"source, {by_hand}."
            ) from error
    return target


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar file into `folder`, where files appear whole, and delete it."""
    with tempfile.TemporaryDirectory(prefix=".unpack", dir=folder) as name:
        try:
            with tarfile.open(archive) as tar:
                # "data" refuses paths and links that lead out of the folder, and devices.
                tar.extractall(name, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            problem = str(error).partition("\n")[0].rstrip(":")
            raise ValueError(f"{archive} cannot be unpacked: {problem}. Delete it and call again.") from error
        shutil.copytree(name, folder, copy_function=os.replace, dirs_exist_ok=True)
    archive.unlink()
