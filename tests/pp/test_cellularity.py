"""The stain density that `pp.image_embedding` writes beside every embedding."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from skimage.color import rgb2hed

import spahgc
from spahgc.encoders import texture_names
from spahgc.encoders._texture import hematoxylin

from .conftest import Make

KEY = "cellularity"


def tiles_seen(tiles: np.ndarray) -> np.ndarray:
    """An encoder that hands its tiles on as they are."""
    return tiles.reshape(len(tiles), -1).astype(np.float32)


def test_kernel_against_skimage() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 40), dtype=np.uint8)
    tiles[3], tiles[4] = 255, 0
    expected = rgb2hed(np.moveaxis(tiles, 1, -1))[..., 0].mean(axis=(1, 2))
    found = hematoxylin(tiles)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found[3] == 0


def test_it_is_the_density_of_the_tiles_that_the_encoder_sees(make_sdata: Make) -> None:
    sdata = make_sdata()
    spahgc.pp.image_embedding(sdata, tiles_seen, tile_px=32, key_added="tiles")
    table = sdata["table"]
    assert table.obs[KEY].dtype == np.float32
    tiles = table.obsm["tiles"].reshape(-1, 3, 32, 32).astype(np.uint8)
    np.testing.assert_array_equal(table.obs[KEY], hematoxylin(tiles))
    assert table.obs[KEY].nunique() > 60
    assert table.uns[KEY] == {"params": {"tile_um": 112.0, "tile_px": 32, "version": spahgc.__version__}}


def test_the_first_field_of_view_counts(make_sdata: Make) -> None:
    sdata, other = make_sdata(), make_sdata()
    spahgc.pp.image_embedding(other, tiles_seen, tile_px=32, tile_um=60)
    assert other["table"].uns[KEY]["params"]["tile_um"] == 60
    spahgc.pp.image_embedding(sdata, tile_px=32, fields_of_view=(2, 1))
    spahgc.pp.image_embedding(other, tiles_seen, tile_px=32, tile_um=224)  # a new embedding writes it anew
    table = sdata["table"]
    np.testing.assert_array_equal(table.obs[KEY], other["table"].obs[KEY])
    assert table.uns[KEY] == other["table"].uns[KEY]
    assert table.uns[KEY]["params"]["tile_um"] == 224
    # It is what the texture encoder calls so.
    column = texture_names().index("hematoxylin_mean")
    np.testing.assert_allclose(table.obs[KEY], table.obsm["image_texture"][:, column], rtol=1e-6)


def test_encoders_cannot_change_it(make_sdata: Make) -> None:
    def rude(tiles: np.ndarray) -> np.ndarray:
        tiles[:] = 0
        return tiles.mean(axis=(2, 3))

    sdata, expected = make_sdata(), make_sdata()
    spahgc.pp.image_embedding(sdata, rude, tile_px=32)
    spahgc.pp.image_embedding(expected, tiles_seen, tile_px=32)
    np.testing.assert_array_equal(sdata["table"].obs[KEY], expected["table"].obs[KEY])


@pytest.mark.parametrize("where", ["obs", "uns", "both"])
def test_what_others_wrote_is_never_overwritten(make_sdata: Make, where: str) -> None:
    sdata = make_sdata()
    table = sdata["table"]
    if where != "uns":
        table.obs[KEY] = "dense"
    if where != "obs":
        table.uns[KEY] = {"a": 1}
    calls = []

    def counted(tiles: np.ndarray) -> np.ndarray:
        calls.append(len(tiles))
        return tiles.mean(axis=(2, 3))

    taken = {"obs": r"obs\['cellularity'\], where", "uns": r"uns\['cellularity'\], where"}
    message = taken.get(where, r"obs\['cellularity'\] and uns\['cellularity'\], where")
    with pytest.raises(ValueError, match=rf"sdata\['table'\] has {message}.*not overwritten: rename it, or delete it"):
        spahgc.pp.image_embedding(sdata, counted, tile_px=32)
    assert not calls
    assert set(table.obsm) == {"spatial"}
    assert KEY not in table.obs or (table.obs[KEY] == "dense").all()
    assert table.uns.get(KEY, {"a": 1}) == {"a": 1}


def test_from_the_image_to_the_prediction(make_sdata: Make) -> None:
    """Two slides with counts that follow the stain: the control finds it on the third, which has H&E only."""
    sdata = make_sdata(("A", "B", "C"))
    spahgc.pp.image_embedding(sdata, lambda tiles: tiles.mean(axis=(2, 3)), tile_px=32, key_added="image_rgb")
    table = sdata["table"]
    density = table.obs[KEY].to_numpy()
    rate = np.clip((density - density.min()) / np.ptp(density), 0.05, 1)
    table = ad.AnnData(
        np.random.default_rng(0).poisson(np.column_stack([200 * rate, 200 * (1.05 - rate)])).astype(np.float32),
        obs=table.obs,
        obsm=dict(table.obsm),
        uns=dict(table.uns),
    )
    is_c = (table.obs["region"] == "C").to_numpy()
    reference, target = table[~is_c].copy(), table[is_c, :0].copy()
    spahgc.tl.predict(
        reference, target, panel=["0", "1"], method="cellularity", patient_key="region", library_key="region"
    )
    found = target.obsm["spahgc"].to_numpy()
    assert np.corrcoef(found[:, 0], density[is_c])[0, 1] > 0.8
    assert np.corrcoef(found[:, 1], density[is_c])[0, 1] < -0.8
