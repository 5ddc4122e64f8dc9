"""Values in a temporary file, and what is taken for a store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spahgc import _disk
from spahgc._disk import Scratch


def test_rows_that_were_written_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    expected = np.zeros((20, 3), np.float32)
    with Scratch(tmp_path / "new", (20, 3)) as scratch:
        for start, stop in ((5, 12), (0, 3), (10, 20), (7, 8)):
            rows, values = slice(start, stop), rng.random((stop - start, 3))
            scratch[rows] = values
            expected[rows] = values
            scratch[rows] += 2 * values
            expected[rows] += 2 * values
            np.testing.assert_array_equal(scratch[slice(0, 20)], expected)
        assert scratch[slice(0, 20)].dtype == np.float32
        order = rng.permutation(20)
        mapped = scratch.mapped()
        np.testing.assert_array_equal(mapped[order], expected[order])
        with pytest.raises(ValueError, match="broadcast"):
            scratch[slice(0, 5)] = np.zeros((2, 3))
        with pytest.raises(ValueError, match="read-only"):
            mapped[0] = 0


@pytest.mark.skipif(sys.platform == "win32", reason="files of a process that was killed stay there")
def test_nothing_is_left_of_a_process_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, numpy, spahgc._disk as stores\n"
        f"scratch = stores.Scratch(pathlib.Path({str(tmp_path)!r}), (5, 2))\n"
        "scratch[slice(0, 5)] = numpy.ones((5, 2))\n"
        "scratch.mapped()\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert not list(tmp_path.iterdir())


def test_what_is_no_store(tmp_path: Path) -> None:
    import zarr

    (tmp_path / "file.zarr").write_text("x")
    (tmp_path / "folder.zarr").mkdir()
    zarr.open_group(tmp_path / "group.zarr", mode="w")
    for name in ("file.zarr", "folder.zarr", "group.zarr", "none.zarr"):
        assert not _disk.is_store(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="There is no "):
        _disk.read_store(tmp_path / "none.zarr")
    with pytest.raises(ValueError, match="not a prediction that spahgc.tl.predict wrote"):
        _disk.read_store(tmp_path / "group.zarr")
    zarr.open_group(tmp_path / "group.zarr", mode="r+").attrs[_disk.MARK] = {"key": "spahgc", "model": "m"}
    assert _disk.is_store(tmp_path / "group.zarr")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "group.zarr")
    assert not _disk.is_store(tmp_path / "link.zarr")


def test_a_name_that_was_taken_meanwhile(tmp_path: Path) -> None:
    """What came to be at the path while the prediction was made is not overwritten either."""
    import anndata as ad
    import pandas as pd

    table = ad.AnnData(obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=["g"]))

    def values(rows: slice) -> np.ndarray:
        (tmp_path / "pred.zarr").mkdir(exist_ok=True)
        return np.zeros((rows.stop - rows.start, 1), np.float32)

    with pytest.raises(FileExistsError, match="never replaced"):
        _disk.write_store(tmp_path / "pred.zarr", table, values, key="spahgc", model="m", overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pred.zarr"]
    assert not list((tmp_path / "pred.zarr").iterdir())


@pytest.mark.parametrize("writer", [_disk.replacing, _disk.replacing_folder])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError("HDF5: (errno = 28, No space left)")]
)
def test_a_full_disk_is_named_and_what_was_there_stays(tmp_path: Path, writer: Any, error: OSError) -> None:
    path = tmp_path / "result.csv"
    path.write_text("before")
    with (
        pytest.raises(OSError, match=r"No space left \(\d+ MB are free\), so it was not written.*result.csv'"),
        writer(path),
    ):
        raise error
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="^other$"), writer(path):
        raise OSError("other")
