"""Which image, which shapes, which scale: by itself where that is clear, and what to name where it is not."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spahgc._links import pick_table
from spahgc.pp._images import LocatedSlide, locate

from . import layouts
from .conftest import Make, picture


def find(sdata: Any, table_key: str | None = None, **kwargs: Any) -> list[LocatedSlide]:
    """All slides of a table."""
    table = sdata[pick_table(sdata, table_key)]
    return locate(sdata, table, **kwargs)


# Tables


def test_which_table_is_taken(make_sdata: Make) -> None:
    """The only one whatever its name, ``table``, or the only one that is linked."""
    sdata = make_sdata()
    sdata.tables["a"] = sdata.tables.pop("table")
    assert pick_table(sdata) == "a"
    assert [slide.name for slide in find(sdata)] == ["A", "B"]
    sdata.tables["b"] = sdata["a"].copy()
    with pytest.raises(KeyError, match=r"2 tables \('a': 70 rows on 'A', 'B'; 'b': 70 .*Pass table_key=<one of them>"):
        pick_table(sdata)
    with pytest.raises(KeyError, match=r"no table 'c' \(table_key\). Available: 'a', 'b'"):
        pick_table(sdata, "c")
    del sdata["b"].uns["spatialdata_attrs"]
    assert (pick_table(sdata), pick_table(sdata, "b")) == ("a", "b")
    sdata.tables["table"] = sdata["a"].copy()
    assert pick_table(sdata) == "table"
    for name in ("a", "b", "table"):
        del sdata.tables[name]
    with pytest.raises(KeyError, match=r"no table.*spahgc\.pp\.tissue_grid"):
        pick_table(sdata)


# Shapes


def test_labels_stand_for_the_shapes_with_the_same_ids(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spahgc")
    sdata = layouts.xenium_object(circles=False, n=200)
    (slide,) = find(sdata)
    np.testing.assert_allclose(slide.centers, sdata["table"].obsm["spatial"], atol=1e-6)
    assert "taking the shapes 'cell_boundaries', which have the ids in obs['cell_id']" in caplog.text


def test_labels_with_several_shapes_or_none() -> None:
    """The message is the remedy."""
    sdata = layouts.xenium_object(circles=False, n=50)
    sdata.shapes["nuclei"] = sdata["cell_boundaries"]
    with pytest.raises(
        KeyError, match=r"not among the shapes.*'nuclei' has the ids in obs\['cell_id'\]: to take it, table"
    ) as told:
        find(sdata)
    command = re.search(r"to take it, (table[^;]*); (sdata\.[^.]*)\. 'nuclei'", str(told.value))
    for line in command.groups():
        exec(line.replace("<table>", "'table'"), {"sdata": sdata, "table": sdata["table"], "pandas": pd})
    assert find(sdata)[0].name == "cell_boundaries"
    # Labels that were not read, as `spatialdata_io.xenium(cells_labels=False)` leaves it.
    sdata = layouts.xenium_object(circles=False, n=50)
    labels = sdata.labels.pop("cell_labels")
    with pytest.raises(KeyError, match=r"'cell_labels', which is not among the shapes.*'cell_boundaries' has the ids"):
        find(sdata)
    # Numbers are no ids: labels 1, 2, 3 fit any element that counts from 1.
    sdata.labels["cell_labels"] = labels
    sdata["cell_boundaries"].index = np.arange(1, 51)
    with pytest.raises(KeyError, match="no shapes have its ids"):
        find(sdata)
    del sdata.shapes["cell_boundaries"]
    with pytest.raises(KeyError, match=r"no shapes have its ids.*to_polygons.*cells_as_circles=True"):
        find(sdata)


# Images


def test_an_image_in_another_coordinate_system(make_sdata: Make) -> None:
    from spatialdata.transformations import Identity, set_transformation

    sdata = make_sdata(("A",))
    set_transformation(sdata.images["A_image"], {"global": Identity()}, set_all=True)
    with pytest.raises(
        ValueError,
        match=r"the image is in 'global', the spots in 'A'.*set_transformation\(.*Identity\(\), 'A'\)",
    ):
        find(sdata)
    set_transformation(sdata.images["A_image"], Identity(), "A")
    assert find(sdata)[0].image == "A_image"


def test_coordinate_systems_that_disagree(make_sdata: Make) -> None:
    from spatialdata.transformations import Identity, Translation, set_transformation

    sdata = make_sdata(("A",))
    set_transformation(sdata.images["A_image"], Translation([20, 0], axes=("x", "y")), "global")
    set_transformation(sdata.shapes["A"], Identity(), "global")
    with pytest.raises(
        ValueError, match=r"other places of image 'A_image' in the coordinate system 'global' than in 'A'"
    ):
        find(sdata)


def test_slides_that_share_a_coordinate_system(make_sdata: Make) -> None:
    """Either image holds either slide's spots: the names tell, or the user."""
    from spatialdata.transformations import Identity, Scale, set_transformation

    sdata = make_sdata()
    finer = Scale([0.8, 0.8], axes=("x", "y"))
    for key, way in [("A", Identity()), ("B", Identity()), ("A_image", Identity()), ("B_image", finer)]:
        set_transformation(sdata[key], {"global": way}, set_all=True)
    sdata.shapes["A"].geometry = sdata.shapes["A"].geometry.scale(0.7, 0.7, origin=(0, 0))
    sdata.shapes["B"].geometry = sdata.shapes["B"].geometry.scale(0.7, 0.7, origin=(0, 0))
    assert [slide.image for slide in find(sdata)] == ["A_image", "B_image"]
    sdata.images["scan1"], sdata.images["scan2"] = sdata.images.pop("A_image"), sdata.images.pop("B_image")
    with pytest.raises(
        ValueError, match=r"hold the spots of slide 'A', and those of other slides too.*image_key=\{'A'"
    ):
        find(sdata)
    named = find(sdata, image_key={"A": "scan1", "B": "scan2"})
    assert [slide.image for slide in named] == ["scan1", "scan2"]


def test_two_slides_on_one_scan(make_sdata: Make) -> None:
    """One image for both is clear."""
    from spatialdata.transformations import Identity, set_transformation

    sdata = make_sdata()
    del sdata.images["B_image"]
    set_transformation(sdata.images["A_image"], Identity(), "B")
    assert [slide.image for slide in find(sdata)] == ["A_image", "A_image"]


def test_fluorescence_is_not_taken_for_he(make_sdata: Make) -> None:
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity

    sdata = make_sdata(("A",))
    kwargs = {"dims": ("y", "x", "c"), "transformations": {"A": Identity()}}
    sdata.images["finer"] = Image2DModel.parse(picture(5), c_coords=["DAPI", "CD45", "18S"], **kwargs)
    sdata.images["morphology_mip"] = Image2DModel.parse(picture(6), c_coords=[0, 1, 2], **kwargs)
    assert find(sdata)[0].image == "A_image"
    del sdata.images["A_image"]
    with pytest.raises(ValueError, match=r"'finer' has the channels 'DAPI', 'CD45', '18S', as fluorescence.*image_key"):
        find(sdata)
    with pytest.raises(ValueError, match="'morphology_mip' is Xenium's fluorescence image, not H&E"):
        find(sdata)
    assert find(sdata, image_key="finer")[0].image == "finer"


def test_a_coarse_image_is_told(make_sdata: Make, caplog: pytest.LogCaptureFixture) -> None:
    find(make_sdata(("A",), mpp=2.9))
    assert not caplog.records
    find(make_sdata(("A",), mpp=4.5))
    assert "'A_image' with 4.5 um per pixel, too coarse to see cells. Add the image at full resolution" in caplog.text
    caplog.clear()
    find(make_sdata(("A",), mpp=4.5), image_key="A_image")
    assert not caplog.records


def test_a_coarser_image_does_not_stand_in_for_one_that_is_cut(make_sdata: Make) -> None:
    """The spots leave the full image, and a small picture holds them all: something is wrong, and is said."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, Scale

    sdata = make_sdata(("A",))
    kwargs = {"dims": ("y", "x", "c")}
    sdata.images["A_image"] = Image2DModel.parse(picture(0)[:, :200], **kwargs, transformations={"A": Identity()})
    small = Scale([5, 5], axes=("x", "y"))
    sdata.images["small"] = Image2DModel.parse(picture(0, 80, 80), **kwargs, transformations={"A": small})
    with pytest.raises(ValueError, match=r"of 35 spots of slide 'A' lie outside its image 'A_image' \(200 x 240"):
        find(sdata)


# Micrometres per pixel


def test_the_order_of_sources(make_sdata: Make) -> None:
    from spatialdata.transformations import Scale

    sdata = make_sdata(("A",), to_image=Scale([2, 2], axes=("x", "y")))
    sdata.attrs["microns_per_pixel"] = {"A_image": 0.7}
    (slide,) = find(sdata, microns_per_pixel=1.8)
    assert (slide.microns_per_pixel, slide.mpp_source) == (1.8, "microns_per_pixel")
    (slide,) = find(sdata)
    assert slide.microns_per_pixel == 2.0
    assert slide.mpp_source == "uns['spatial']['A']['scalefactors']['microns_per_pixel']"
    del sdata["table"].uns["spatial"]
    (slide,) = find(sdata)
    # Half a pixel of the image a unit of the spots' coordinates.
    assert slide.microns_per_pixel == pytest.approx(0.35)
    assert slide.levels[0].microns_per_pixel == pytest.approx(0.7)
    assert slide.mpp_source == "sdata.attrs['microns_per_pixel']['A_image']"
    sdata.attrs["microns_per_pixel"] = {"A_image": 250}
    with pytest.raises(ValueError, match=r"attrs\['microns_per_pixel'\]\['A_image'\] of slide 'A' is 250"):
        find(sdata)
    sdata.attrs.clear()
    with pytest.raises(ValueError, match="pixel of slide 'A' are not known.*coordinates are in micrometers"):
        find(sdata)


def test_a_value_that_the_format_contradicts_is_told(caplog: pytest.LogCaptureFixture) -> None:
    sdata = layouts.xenium_object(n=200)
    (slide,) = find(sdata, microns_per_pixel=1.05)
    assert not caplog.records
    (slide,) = find(sdata, microns_per_pixel=0.2125)
    assert slide.microns_per_pixel == 0.2125
    assert "says 0.2125 um per unit of the spots' coordinates, but Xenium's cell areas in um says 1" in caplog.text


@pytest.mark.parametrize(("given", "recorded", "image"), [(0.3, 0.5, None), (None, 0.5, 0.3), (0.3, None, 0.5)])
def test_records_that_contradict_each_other(
    make_sdata: Make, caplog: pytest.LogCaptureFixture, given: float | None, recorded: float | None, image: float | None
) -> None:
    sdata = make_sdata(("A",), mpp=recorded)
    sdata.attrs["microns_per_pixel"] = {} if image is None else {"A_image": image}
    (slide,) = find(sdata, microns_per_pixel=given)
    used, other = (value for value in (given, recorded, image) if value is not None)
    assert slide.microns_per_pixel == used
    assert f"says {used} um per unit of the spots' coordinates, but" in caplog.text
    assert f"says {other}. The former is used" in caplog.text


def test_records_that_agree_are_quiet(make_sdata: Make, caplog: pytest.LogCaptureFixture) -> None:
    sdata = make_sdata(("A",), mpp=0.5)
    sdata.attrs["microns_per_pixel"] = {"A_image": 0.52}
    find(sdata, microns_per_pixel=0.49)
    assert "Which is right" not in caplog.text


def test_cell_areas_that_are_not_those_of_the_shapes() -> None:
    """Shapes in pixels, areas in um: no proof of the unit, and it is asked for."""
    sdata = layouts.xenium_object(n=100)
    sdata["table"].obs["cell_area"] *= 0.2125**2
    with pytest.raises(ValueError, match="not known"):
        find(sdata)
    sdata = layouts.xenium_object(n=100)
    del sdata["table"].obs["nucleus_area"]  # another instrument's areas may be in pixels
    with pytest.raises(ValueError, match="not known"):
        find(sdata)


def test_visium_pitch() -> None:
    from spahgc._geometry import visium_pitch

    row, column = (part.ravel() for part in np.meshgrid(np.arange(12), np.arange(20), indexing="ij"))
    even = (row + column) % 2 == 0
    obs = pd.DataFrame({"array_row": row[even], "array_col": column[even]})
    place = np.column_stack([obs["array_col"] * 50.0, obs["array_row"] * 50 * np.sqrt(3)])
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    rng = np.random.default_rng(0)
    assert visium_pitch(obs, place @ turn + 1000) == pytest.approx(100)
    assert visium_pitch(obs, place[:, ::-1]) == pytest.approx(100)
    # Positions scatter by rounding; half of the spots are not in the tissue.
    assert visium_pitch(obs, place + rng.normal(0, 3, place.shape)) == pytest.approx(100, rel=0.01)
    kept = rng.uniform(size=len(obs)) < 0.5
    assert visium_pitch(obs[kept], place[kept]) == pytest.approx(100)
    # Not Visium: every column is used; a square lattice numbered so; positions of other spots; no neighbors.
    every = pd.DataFrame({"array_row": row, "array_col": column})
    assert visium_pitch(every, np.column_stack([column, row]) * 100.0) is None
    assert visium_pitch(obs, place * [1, 1.3]) is None
    assert visium_pitch(obs, rng.permutation(place)) is None
    assert visium_pitch(obs[::40], place[::40]) is None
    assert visium_pitch(obs.assign(array_row=np.nan), place) is None
    assert visium_pitch(obs[["array_row"]], place) is None
    # A lattice that spahgc laid may have any pitch.
    assert visium_pitch(obs.assign(tissue_fraction=1.0), place) is None
    assert visium_pitch(obs.assign(n_bins=4), place) is None
