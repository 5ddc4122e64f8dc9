"""Downloads for all datasets: a file appears whole and checked, and what was cut off goes on where it stopped."""

from __future__ import annotations

import logging
import os
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._settings import settings

if TYPE_CHECKING:
    from requests import Response

logger = logging.getLogger("spahgc")

RECORD = "checksums.txt"
"""File in a dataset's folder with the SHA-256 of the files that came without a published checksum."""
TRIES = 3
TIMEOUT_S = (20, 60)
"""Seconds to wait for a connection, and for the next bytes."""
CHUNK = 1 << 16
"""Bytes at a time; those of a chunk that was cut off come again."""


def fetch(
    url: str,
    folder: Path,
    name: str,
    *,
    checksum: str | None = None,
    progress: bool | None = None,
    by_hand: str,
) -> Path:
    """Download a file unless it is there, with the right checksum.

    The bytes go to ``.{name}.part``, which stays when the connection breaks; the next call asks for the rest, if the
    server still has the same file. Without a published checksum that of the first download is kept in `RECORD` and
    later downloads have to agree with it.

    Parameters
    ----------
    url
        Where the file is.
    folder
        Folder of the dataset.
    name
        Path of the file in `folder`, with ``/``.
    checksum
        ``md5:...`` or ``sha256:...``; `None` where none is published.
    progress
        Show a progress bar; `None` takes ``settings.progress``.
    by_hand
        What a user without a network does instead; the end of a sentence.

    Raises
    ------
    ConnectionError
        If the download fails.
    ValueError
        If the file has another checksum; it is not kept.
    """
    import pooch
    import requests
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    # Jobs of a cluster that start together share the folder, and the half-written file.
    with FileLock(folder / ".lock"):
        known = checksum or _recorded(folder).get(name)
        try:
            pooch.retrieve(
                url,
                known_hash=known,
                fname=target.name,
                path=target.parent,
                downloader=_Resuming(
                    target.with_name(f".{target.name}.part"), settings.progress if progress is None else progress
                ),
            )
        except (requests.exceptions.RequestException, ConnectionError) as error:
            raise ConnectionError(
                f"Could not download {url}: {error}. What has come is kept, and the next call goes on from there. "
                f"Try again, or {by_hand}."
            ) from error
        except ValueError as error:
            source = "that spahgc knows" if checksum else f"of the first download, noted in {folder / RECORD}"
            raise ValueError(
                f"{url} is not the file {source} (expected {known}); nothing was kept. If you trust the source, "
                f"{by_hand if checksum else 'delete its line there'}."
            ) from error
        if known is None:
            with (folder / RECORD).open("a", encoding="utf-8") as handle:
                handle.write(f"{name} sha256:{pooch.file_hash(str(target))}\n")
    return target


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar file into `folder`, where it appears whole or not at all, and delete it."""
    with tempfile.TemporaryDirectory(prefix=".unpack", dir=folder) as name:
        try:
            with tarfile.open(archive) as tar:
                # "data": nothing outside of the folder, no devices, no links that lead out
                tar.extractall(name, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            told = str(error).partition("\n")[0].rstrip(":")
            raise ValueError(f"{archive} cannot be unpacked: {told}. Delete it and call again.") from error
        for path in Path(name).iterdir():
            _merge(path, folder / path.name)
    archive.unlink()


def _merge(source: Path, target: Path) -> None:
    """Move files into a folder that may be there already; files of the same name are replaced."""
    if source.is_dir() and target.is_dir():
        for path in source.iterdir():
            _merge(path, target / path.name)
    else:
        source.replace(target)


def _recorded(folder: Path) -> dict[str, str]:
    record = folder / RECORD
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    return dict(line.rsplit(" ", 1) for line in lines if line.strip())


class _Resuming:
    """A downloader for pooch that goes on with a half-written file, `part`."""

    def __init__(self, part: Path, progress: bool) -> None:
        self.part, self.progress = part, progress
        self.validator = part.with_suffix(".etag")

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        import requests

        for attempt in range(1, TRIES + 1):
            try:
                self._receive(url)
                break
            except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                if attempt == TRIES or not self.part.exists():
                    raise
                logger.info("%s: %s; going on from byte %d.", url, error, self.part.stat().st_size)
        os.replace(self.part, output_file)
        self.validator.unlink(missing_ok=True)

    def _receive(self, url: str) -> None:
        """Append the rest of the file to `part`; start anew if the server has no ranges, or another file by now."""
        import requests
        from tqdm.auto import tqdm

        here = self.part.stat().st_size if self.part.exists() and self.validator.exists() else 0
        # The bytes are counted as they are stored: no compression on the way.
        headers = {"Accept-Encoding": "identity"}
        if here:
            headers |= {"Range": f"bytes={here}-", "If-Range": self.validator.read_text(encoding="utf-8")}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            if here and response.status_code == requests.codes.requested_range_not_satisfiable:
                self.validator.unlink()
                self._receive(url)
                return
            response.raise_for_status()
            resumed = response.status_code == requests.codes.partial_content
            self._note_validator(response)
            rest = response.headers.get("Content-Length")
            done = here if resumed else 0
            with (
                self.part.open("ab" if resumed else "wb") as handle,
                tqdm(
                    total=done + int(rest) if rest else None,
                    initial=done,
                    unit="B",
                    unit_scale=True,
                    desc=self.part.name[1 : -len(".part")],
                    disable=not self.progress,
                ) as bar,
            ):
                for chunk in response.iter_content(CHUNK):
                    handle.write(chunk)
                    bar.update(len(chunk))

    def _note_validator(self, response: Response) -> None:
        """Keep what tells this version of the file from others; without it a download cannot be resumed safely."""
        tag = response.headers.get("ETag", "")
        # weak tags do not promise the same bytes
        validator = response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
        if validator:
            self.validator.write_text(validator, encoding="utf-8")
        else:
            self.validator.unlink(missing_ok=True)
