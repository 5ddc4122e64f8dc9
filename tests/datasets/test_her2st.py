"""her2st: a local folder in its layout, and the download against a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from PIL import Image

from spahgc import settings
from spahgc.datasets import _published, her2st

from ..refusals import refused

if TYPE_CHECKING:
    from conftest import Server


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A tiny copy of the repository: slides A1 (plain table), B2 and B3, 6 spots each."""
    root, rng = tmp_path / "repository", np.random.default_rng(0)
    for sample in ("A1", "B2", "B3"):
        image = root / "data" / "ST-imgs" / sample[0] / sample / f"{sample}_HE.jpg"
        for folder in (root / "data" / "ST-cnts", root / "data" / "ST-spotfiles", image.parent):
            folder.mkdir(parents=True, exist_ok=True)
        x, y = np.array([1, 2, 3, 1, 2, 3]), np.array([1, 1, 1, 2, 2, 2])
        spots = pd.DataFrame(
            {"x": x, "y": y, "new_x": x, "new_y": y, "pixel_x": 50 * x, "pixel_y": 50 * y, "selected": 1}
        )
        spots.to_csv(root / "data" / "ST-spotfiles" / f"{sample}_selection.tsv", sep="\t", index=False)
        names = [f"{a}x{b}" for a, b in zip(x, y, strict=True)]
        table = pd.DataFrame(rng.poisson(2, (6, 4)), index=names, columns=["ERBB2", "FASN", sample, "GNAS"])
        text = table.to_csv(sep="\t").encode()
        counts = root / "data" / "ST-cnts" / f"{sample}.tsv"
        if sample == "A1":
            counts.write_bytes(text)
        else:
            counts.with_suffix(".tsv.gz").write_bytes(gzip.compress(text))
        Image.fromarray(rng.integers(0, 256, (200, 250, 3), dtype=np.uint8)).save(image)
    return root


@pytest.fixture
def server(repository: Path, serve: Callable[[Path], Server], monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server for the tiny repository, whose files of B2 and B3 have known checksums."""
    files = [file for file in repository.rglob("*") if file.is_file() and "A1" not in file.name]
    registry = {
        file.relative_to(repository).as_posix(): f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in files
    }
    monkeypatch.setattr(_published, "her2st_registry", lambda: registry)
    server = serve(repository)
    monkeypatch.setattr(_published, "HER2ST_URL", server.url)
    return server


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("[!.]*") if file.is_file())


def test_local_folder(repository: Path, tmp_path: Path) -> None:
    sdata = her2st(repository)
    table = sdata["table"]
    assert list(table.var_names) == ["A1", "B2", "B3", "ERBB2", "FASN", "GNAS"]
    assert table.obs["region"].cat.categories.tolist() == ["A1", "B2", "B3"]
    assert table.obs.groupby("region", observed=True)["patient"].first().to_dict() == {"A1": "A", "B2": "B", "B3": "B"}
    for sample in ("A1", "B2", "B3"):
        part = table[table.obs["region"] == sample]
        file = next((repository / "data" / "ST-cnts").glob(f"{sample}.tsv*"))
        raw = pd.read_csv(file, sep="\t", index_col=0)
        np.testing.assert_array_equal(part.to_df()[raw.columns], raw)
        factors = table.uns["spatial"][sample]["scalefactors"]
        assert factors["microns_per_pixel"] == pytest.approx(4.0)
        assert factors["spot_diameter_fullres"] == pytest.approx(25.0)
    sdata.write(tmp_path / "out.zarr")
    back = sd.read_zarr(tmp_path / "out.zarr")
    assert (back["table"].X != table.X).nnz == 0
    assert back["table"].obs["patient"].tolist() == table.obs["patient"].tolist()
    table.write_h5ad(tmp_path / "out.h5ad")
    assert (ad.read_h5ad(tmp_path / "out.h5ad").X != table.X).nnz == 0


def test_slides_of_a_local_folder(repository: Path) -> None:
    data = str(repository / "data")
    assert her2st(data, slides=["B3", "A1"])["table"].obs["region"].cat.categories.tolist() == ["A1", "B3"]
    with pytest.raises(
        ValueError, match=r"No slide 'C9' in her2st\. Available in '.*data': 'A1', 'B2', 'B3'; .*36 slides"
    ):
        her2st(data, slides=["B3", "C9"])
    refused(TypeError, "`slides` must be a sequence of strings or None, got 'A1'", her2st, data, slides="A1")
    refused(ValueError, "`slides` is empty", her2st, data, slides=[])
    refused(
        FileNotFoundError,
        "No slides of her2st in .*Expected files: .*ST-cnts/B",
        her2st,
        repository / "nowhere",
    )


def test_incomplete_local_folder(repository: Path) -> None:
    image = repository / "data" / "ST-imgs" / "B" / "B2" / "B2_HE.jpg"
    image.rename(image.with_suffix(".png"))
    with pytest.raises(
        FileNotFoundError, match=r"Slide 'B2' of her2st is incomplete: no \*\.jpg \(exactly one\) in .*B2"
    ):
        her2st(repository)
    for name in ("one.jpg", "two.jpg"):
        image.with_name(name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no \*\.jpg \(exactly one\) in .* which has .*'one\.jpg', 'two\.jpg'"):
        her2st(repository)
    (repository / "data" / "ST-spotfiles" / "A1_selection.tsv").unlink()
    refused(FileNotFoundError, r"Slide 'A1' of her2st is incomplete: no A1_selection\.tsv", her2st, repository)


def test_download(server: Server, home: Path) -> None:
    assert her2st(slides=["B3"])["table"].shape == (6, 4)
    assert files_in(home / "her2st" / "data") == ["B3.tsv.gz", "B3_HE.jpg", "B3_selection.tsv"]
    assert len(server.asked) == 3
    # what is there is not asked for again; what is not there comes in
    her2st(slides=["B3"])
    assert len(server.asked) == 3
    assert her2st(slides=["B2", "B3"])["table"].n_obs == 12
    assert len(server.asked) == 6
    # no slides named: those that are there
    assert her2st()["table"].n_obs == 12


def test_download_takes_all_known_slides(server: Server, home: Path) -> None:
    assert her2st()["table"].obs["region"].cat.categories.tolist() == ["B2", "B3"]


def test_slide_without_checksum_is_not_downloaded(server: Server, home: Path) -> None:
    with pytest.raises(ValueError, match=r"No slide 'A1' in .*to download: 'B2', 'B3'\. Otherwise run `git clone"):
        her2st(slides=["A1"])
    assert server.asked == []


def test_wrong_checksum(server: Server, home: Path, repository: Path) -> None:
    (repository / "data" / "ST-spotfiles" / "B2_selection.tsv").write_text("x\ty\n")
    with pytest.raises(
        ValueError, match=r"B2_selection\.tsv is not the file that spahgc knows \(expected sha256:.*nothing was kept"
    ):
        her2st(slides=["B2"])
    assert "B2_selection.tsv" not in files_in(home / "her2st" / "data")
    assert set(files_in(home / "her2st" / "data")) <= {"B2.tsv.gz", "B2_HE.jpg"}


def test_registry_holds_three_files_a_slide() -> None:
    registry = _published.her2st_registry()
    assert sorted(Path(file).name[:2] for file in registry if "cnts" in file) == ["B4", "C2", "C3", "C4", "C5"]
    assert len(registry) == 15
    assert all(len(checksum) == len("sha256:") + 64 for checksum in registry.values())


def test_registry_is_that_of_the_real_files(data_dir: Path) -> None:
    for file, checksum in _published.her2st_registry().items():
        digest = hashlib.sha256((data_dir / "her2st" / file).read_bytes()).hexdigest()
        assert f"sha256:{digest}" == checksum, file


def test_real_slide(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the data folder of the settings; more slides: `benchmarks`."""
    monkeypatch.setattr(settings, "data_dir", data_dir)
    sdata = her2st(slides=["C4"])
    table = sdata["table"]
    assert table.shape == (184, 15842)
    assert table.obs["patient"].unique().tolist() == ["C"]
    assert table.uns["spatial"]["C4"]["scalefactors"]["microns_per_pixel"] == pytest.approx(0.69, rel=0.01)
    assert sdata["C4_image"]["scale0"]["image"].shape == (3, 9916, 9278)
    assert table.uns["spatial"]["C4"]["images"]["hires"].shape == (1000, 936, 3)
