"""her2st and cscc: local folders in their published layouts, and the downloads against a local server."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.spatial import cKDTree

from spahgc import settings
from spahgc.datasets import _published, cscc, her2st

from ..refusals import refused
from .conftest import Server

STEP_PX, SIDE = 40, 14
MPP = 150 / np.sqrt(2) / STEP_PX


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
def server(repository: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server for the tiny repository, whose files of B2 and B3 have known checksums."""
    files = [file for file in repository.rglob("*") if file.is_file() and "A1" not in file.name]
    registry = {
        file.relative_to(repository).as_posix(): f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        for file in files
    }
    monkeypatch.setattr(_published, "her2st_registry", lambda: registry)
    return serve(repository, "HER2ST_URL")


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("[!.]*") if file.is_file())


def test_her2st_local_folder(repository: Path) -> None:
    table = her2st(repository)["table"]
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


def test_her2st_slides_of_a_local_folder(repository: Path) -> None:
    data = str(repository / "data")
    assert her2st(data, slides=["B3", "A1"])["table"].obs["region"].cat.categories.tolist() == ["A1", "B3"]
    with pytest.raises(
        ValueError, match=r"No slide 'C9' in her2st\. Available in '.*data': 'A1', 'B2', 'B3'; .*36 slides"
    ):
        her2st(data, slides=["B3", "C9"])
    refused(TypeError, "`slides` must be a sequence of strings or None, got 'A1'", her2st, data, slides="A1")
    refused(ValueError, "`slides` is empty", her2st, data, slides=[])
    refused(FileNotFoundError, "No slides of her2st in .*Expected files: .*ST-cnts/B", her2st, repository / "nowhere")


def test_her2st_incomplete_local_folder(repository: Path) -> None:
    image = repository / "data" / "ST-imgs" / "B" / "B2" / "B2_HE.jpg"
    image.rename(image.with_suffix(".png"))
    refused(
        FileNotFoundError, r"Slide 'B2' of her2st is incomplete: no \*\.jpg \(exactly one\) in .*B2", her2st, repository
    )
    for name in ("one.jpg", "two.jpg"):
        image.with_name(name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no \*\.jpg \(exactly one\) in .* which has .*'one\.jpg', 'two\.jpg'"):
        her2st(repository)
    (repository / "data" / "ST-spotfiles" / "A1_selection.tsv").unlink()
    refused(FileNotFoundError, r"Slide 'A1' of her2st is incomplete: no A1_selection\.tsv", her2st, repository)


def test_her2st_download(server: Server, home: Path) -> None:
    assert her2st(slides=["B3"])["table"].shape == (6, 4)
    assert files_in(home / "her2st" / "data") == ["B3.tsv.gz", "B3_HE.jpg", "B3_selection.tsv"]
    assert len(server.asked) == 3
    her2st(slides=["B3"])
    assert len(server.asked) == 3
    assert her2st(slides=["B2", "B3"])["table"].n_obs == 12
    assert len(server.asked) == 6
    assert her2st()["table"].n_obs == 12


def test_her2st_download_takes_all_known_slides(server: Server, home: Path) -> None:
    refused(ValueError, r"No slide 'A1' in .*to download: 'B2', 'B3'\. Otherwise run `git clone", her2st, slides=["A1"])
    assert server.asked == []
    assert her2st()["table"].obs["region"].cat.categories.tolist() == ["B2", "B3"]


def test_her2st_wrong_checksum(server: Server, home: Path, repository: Path) -> None:
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
    accessions = _published.CSCC_ACCESSIONS
    assert (len(accessions), accessions["P9_ST_rep2"], accessions["P10_ST_rep3"]) == (12, "GSM4284323", "GSM4284327")


def test_registry_is_that_of_the_real_files(data_dir: Path) -> None:
    for file, checksum in _published.her2st_registry().items():
        digest = hashlib.sha256((data_dir / "her2st" / file).read_bytes()).hexdigest()
        assert f"sha256:{digest}" == checksum, file


def test_her2st_real_slide(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the data folder of the settings; more slides: `benchmarks`."""
    monkeypatch.setattr(settings, "data_dir", data_dir)
    sdata = her2st(slides=["C4"])
    table = sdata["table"]
    assert table.shape == (184, 15842)
    assert table.obs["patient"].unique().tolist() == ["C"]
    assert table.uns["spatial"]["C4"]["scalefactors"]["microns_per_pixel"] == pytest.approx(0.69, rel=0.01)
    assert sdata["C4_image"]["scale0"]["image"].shape == (3, 9916, 9278)
    assert table.uns["spatial"]["C4"]["images"]["hires"].shape == (1000, 936, 3)


def write_slide(folder: Path, gsm: str, slide: str, *, plain: bool = False) -> pd.DataFrame:
    """Files of one slide as GEO has them: counts of the whole array, and the spots under the tissue."""
    rng = np.random.default_rng(int(gsm[3:]))
    x, y = (part.ravel() for part in np.meshgrid(np.arange(1, SIDE + 1), np.arange(1, SIDE + 1)))
    keep = (x + y) % 2 == 0
    x, y = x[keep], y[keep]
    darkness = rng.integers(0, 150, len(x))
    means = np.column_stack([1 + darkness / 10, np.full(len(x), 5), 16 - darkness / 10, np.full(len(x), 8)])
    counts = pd.DataFrame(
        rng.poisson(means),
        index=[f"{a}x{b}" for a, b in zip(x, y, strict=True)],
        columns=["KRT5", "CD74", "MMP1", slide],
    )
    pixel = np.column_stack([x, y]) * STEP_PX
    spots = pd.DataFrame({"x": x, "y": y, "new_x": x + 0.02, "new_y": y - 0.02})
    spots["pixel_x"], spots["pixel_y"] = pixel.T
    spots = spots[(x > 2) & (y < SIDE - 1)]
    image = rng.integers(230, 250, ((SIDE + 2) * STEP_PX, (SIDE + 1) * STEP_PX, 3), dtype=np.uint8)
    for (left, top), dark in zip(pixel - STEP_PX // 2, darkness, strict=True):
        image[top : top + STEP_PX, left : left + STEP_PX, 1] -= dark.astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=95)
    texts = {
        f"{gsm}_{slide}_stdata.tsv": counts.to_csv(sep="\t").encode(),
        f"{gsm}_spot_data-selection-{slide}.tsv": spots.to_csv(sep="\t", index=False).encode(),
        f"{gsm}_{slide}.jpg": buffer.getvalue(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name if plain else folder / f"{name}.gz").write_bytes(text if plain else gzip.compress(text, 1))
    return counts.loc[[f"{a}x{b}" for a, b in zip(spots["x"], spots["y"], strict=True)]]


@pytest.fixture
def geo(tmp_path: Path) -> dict[str, pd.DataFrame]:
    """Three slides of two patients, as unpacked from the archive; the last one uncompressed."""
    folder = tmp_path / "geo" / "GSE144240_RAW"
    return {
        "P2_ST_rep1": write_slide(folder, "GSM4284316", "P2_ST_rep1"),
        "P2_ST_rep2": write_slide(folder, "GSM4284317", "P2_ST_rep2"),
        "P10_ST_rep3": write_slide(folder, "GSM4284327", "P10_ST_rep3", plain=True),
    }


def test_cscc_local_folder(geo: dict[str, pd.DataFrame], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sdata = cscc(tmp_path / "geo")
    table = sdata["table"]
    assert table.obs.groupby("region", observed=True)["patient"].first().to_dict() == {
        "P10_ST_rep3": "P10",
        "P2_ST_rep1": "P2",
        "P2_ST_rep2": "P2",
    }
    for slide, counts in geo.items():
        part = table[table.obs["region"] == slide]
        assert part.obs_names.tolist() == [f"{slide}_{name}" for name in counts.index]
        np.testing.assert_array_equal(part.to_df()[counts.columns], counts)
        factors = table.uns["spatial"][slide]["scalefactors"]
        assert factors["microns_per_pixel"] == pytest.approx(MPP, rel=1e-6)
        assert factors["spot_diameter_fullres"] * MPP == pytest.approx(110)
        # on this array the neighbours are on the diagonals, 150 um away
        near = cKDTree(part.obsm["spatial"]).query(part.obsm["spatial"], k=2)[0][:, 1]
        assert near * MPP == pytest.approx(150)
        assert sdata[f"{slide}_image"]["scale0"]["image"].shape == (3, (SIDE + 2) * STEP_PX, (SIDE + 1) * STEP_PX)
    # that the counts hold the whole array is no reason to warn
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_cscc_one_slide_and_the_inner_folder(geo: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    table = cscc(str(tmp_path / "geo" / "GSE144240_RAW"), slides=["P10_ST_rep3"], pitch_um=200)["table"]
    assert table.obs["region"].cat.categories.tolist() == ["P10_ST_rep3"]
    factors = table.uns["spatial"]["P10_ST_rep3"]["scalefactors"]
    assert factors["microns_per_pixel"] == pytest.approx(MPP * 200 / 150)


def test_cscc_refusals(geo: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    folder = tmp_path / "geo"
    with pytest.raises(
        ValueError, match=r"No slide 'P2_ST_rep9' in cscc\. Available in .*: 'P2_ST_rep1', 'P2_ST_rep2'"
    ):
        cscc(folder, slides=["P2_ST_rep9"])
    refused(
        FileNotFoundError, r"No slides of cscc in .*ST_rep1_stdata.*acc=GSE144240.*cscc\(path=\.\.\.\)", cscc, tmp_path
    )
    (folder / "GSE144240_RAW" / "GSM4284317_P2_ST_rep2.jpg.gz").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"'P2_ST_rep2' of cscc is incomplete: no GSM4284317_P2_ST_rep2\.jpg or .*which has .*'GSM4284317_P2",
    ):
        cscc(folder)
    image = folder / "GSE144240_RAW" / "GSM4284316_P2_ST_rep1.jpg.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    refused(OSError, r"rep1\.jpg\.gz\) is damaged or truncated", cscc, folder, slides=["P2_ST_rep1"])


def test_cscc_download(geo: dict[str, pd.DataFrame], home: Path, serve: Callable[..., Server], tmp_path: Path) -> None:
    for file in (tmp_path / "geo").rglob("GSM4284316*"):
        place = tmp_path / "web" / "GSM4284nnn" / "GSM4284316" / "suppl" / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    server = serve(tmp_path / "web", "CSCC_URL")
    sdata = cscc(slides=["P2_ST_rep1"])
    np.testing.assert_array_equal(sdata["table"].to_df(), geo["P2_ST_rep1"])
    assert len(server.asked) == 3
    assert len([path for path in (home / "cscc").rglob("*") if path.suffix == ".gz"]) == 3
    cscc()
    assert len(server.asked) == 3
    with pytest.raises(ConnectionError, match=r"GSM4284319_P5_ST_rep1_stdata\.tsv\.gz.*download GSE144240_RAW\.tar"):
        cscc(slides=["P5_ST_rep1"])
