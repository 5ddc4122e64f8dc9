"""A web server on this machine for the tests of downloads, and a small Visium section in its published files."""

from __future__ import annotations

import gzip
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from scipy.io import mmwrite
from scipy.sparse import csc_matrix

from spahgc import settings
from spahgc.datasets import _published


class Server:
    """Serves a folder; `cut` makes it break off half-way through files with this ending; `asked` has the paths."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.cut = ""
        server = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                path = Path(self.translate_path(self.path))
                if not path.is_file():
                    self.send_error(404)
                    return
                body = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if server.cut and self.path.endswith(server.cut):
                    body = body[: len(body) // 2]
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Maker of a server for a folder, from which data sets with the address of this name are downloaded."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started: list[tuple[Server, threading.Thread]] = []

    def start(folder: Path, url: str = "") -> Server:
        server = Server(folder)
        if url:
            monkeypatch.setattr(_published, url, server.url)
        thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


class VisiumSlide:
    """A small Visium section with a link from its image to two of its genes, and the files it is published in.

    `side` x `side` spots, `pitch` pixels apart, at 100 / `pitch` um per pixel.
    """

    def __init__(self, seed: int, genes: Sequence[str] = ("ERBB2", "KRT8", "CD3E", "MALAT1"), side: int = 9) -> None:
        self.rng, self.pitch = np.random.default_rng(seed), 50.0
        row, place = (part.ravel() for part in np.divmod(np.arange(side * side), side))
        column = 2 * place + row % 2
        self.xy = np.column_stack([30 + column * self.pitch / 2, 40 + row * self.pitch * np.sqrt(3) / 2])
        self.array = np.column_stack([row, column])
        letters = np.array(list("ACGT"))
        barcodes = self.rng.choice(letters, (len(row), 16))
        self.barcodes = [f"{''.join(barcode)}-1" for barcode in barcodes]
        darkness = self.rng.integers(0, 150, len(row))
        means = np.column_stack([1 + darkness / 8, 20 - darkness / 8] + [np.full(len(row), 8)] * (len(genes) - 2))
        self.counts = pd.DataFrame(self.rng.poisson(means), index=self.barcodes, columns=list(genes))
        size = int(self.xy.max()) + 60
        self.image = self.rng.integers(230, 250, (size + 8, size, 3), dtype=np.uint8)
        half = int(self.pitch / 2)
        for (x, y), dark in zip(self.xy.round().astype(int), darkness, strict=True):
            self.image[y - half : y + half, x - half : x + half, 1] -= np.uint8(dark)

    def write_spatial(self, folder: Path, *, header: bool = False) -> None:
        """Space Ranger's ``spatial``, with two spots outside of the tissue."""
        folder.mkdir(parents=True, exist_ok=True)
        positions = pd.DataFrame({"barcode": self.barcodes, "in_tissue": 1})
        positions["array_row"], positions["array_col"] = self.array.T
        positions["pxl_row_in_fullres"], positions["pxl_col_in_fullres"] = self.xy[:, ::-1].round(2).T
        bare = positions.iloc[:2].assign(barcode=["A" * 16 + "-1", "C" * 16 + "-1"], in_tissue=0, array_row=70)
        name = "tissue_positions.csv" if header else "tissue_positions_list.csv"
        pd.concat([positions.iloc[::-1], bare]).to_csv(folder / name, index=False, header=header)
        factors = {"tissue_hires_scalef": 0.25, "tissue_lowres_scalef": 0.1}
        (folder / "scalefactors_json.json").write_text(json.dumps(factors))
        image = Image.fromarray(self.image)
        for name, scale in (("hires", 0.25), ("lowres", 0.1)):
            small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
            small.save(folder / f"tissue_{name}_image.png")

    def write_h5(self, path: Path) -> None:
        """Space Ranger's ``filtered_feature_bc_matrix.h5``."""
        matrix = csc_matrix(self.counts.to_numpy().T)
        genes = self.counts.columns
        with h5py.File(path, "w") as file:
            file.attrs["library_ids"] = np.array([b"lib"])
            group = file.create_group("matrix")
            for name in ("data", "indices", "indptr"):
                group[name] = getattr(matrix, name).astype(np.int64)
            group["shape"] = np.array(matrix.shape, dtype=np.int32)
            group["barcodes"] = np.array(self.barcodes, dtype="S")
            features = group.create_group("features")
            features["id"] = np.array([f"ENSG{i:011d}" for i in range(len(genes))], dtype="S")
            features["name"] = np.array(genes, dtype="S")
            features["feature_type"] = np.array(["Gene Expression"] * len(genes), dtype="S")
            features["genome"] = np.array(["GRCh38"] * len(genes), dtype="S")

    def write_mtx(self, folder: Path, *, columns: int = 1, compress: bool = True) -> None:
        """Matrix Market files; features of one column (symbols) or three."""
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        mmwrite(buffer, csc_matrix(self.counts.to_numpy().T))
        genes = self.counts.columns
        lines = [gene if columns == 1 else f"ENSG{i}\t{gene}\tGene Expression" for i, gene in enumerate(genes)]
        for name, text in (
            ("matrix.mtx.gz", buffer.getvalue()),
            ("features.tsv.gz", "\n".join([*lines, ""]).encode()),
            ("barcodes.tsv.gz", "\n".join([*self.barcodes, ""]).encode()),
        ):
            (folder / name).write_bytes(gzip.compress(text) if compress else text)

    def write_tif(self, path: Path) -> None:
        """A tiled TIFF with a resolution tag that is wrong, as many have (96 dots per inch)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, self.image, photometric="rgb", tile=(256, 256), resolution=(96, 96), resolutionunit=2)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for downloads."""
    monkeypatch.setattr(settings, "data_dir", tmp_path / "home")
    return tmp_path / "home"
