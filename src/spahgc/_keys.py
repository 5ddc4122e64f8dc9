"""Names of the slots that spahgc reads and writes; every other module takes them from here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# ``obsm``: pixel coordinates (x, y) in the full-resolution image. ``uns``: squidpy's per-slide images and scale
# factors
SPATIAL = "spatial"
# ``uns``: the link of a SpatialData table to its shapes (``region``, ``region_key``, ``instance_key``)
SPATIALDATA_ATTRS = "spatialdata_attrs"
TABLE = "table"  # Name of the table in a SpatialData object
# ``obs``: the slide of each spot in tables that spahgc reads; equals the name of the slide's shapes element
REGION = "region"
INSTANCE = "spot_id"  # ``obs``: the index of each spot in its slide's shapes element, in tables that spahgc reads
N_BINS = "n_bins"  # ``obs``: bins or cells that a spot of `io.bin_to_spots` sums
PATIENT = "patient"  # ``obs``: default column of the patient (donor)
TISSUE = "tissue_fraction"  # ``obs``: share of a virtual spot's area that is tissue
GRID = "spahgc_grid"  # ``uns``: how virtual spots were laid out
IMAGE_PREFIX = "image_"  # ``obsm``: embeddings are ``image_{encoder}``
CELLULARITY = "cellularity"  # ``obs``: stain density of each spot's tile, mean hematoxylin optical density
TILE_QUALITY = "tile_quality"  # ``obs``: verdict on each spot's tile; ``obsm``: its measures; ``uns``: limits
PREDICTION = "spahgc"  # Default ``key_added`` of predictions: ``obsm``, ``layers`` and ``uns`` entry
SCANPY_LOG = "log1p"  # ``uns``: what scanpy.pp.log1p leaves behind
MEASURED_ON = "measured_on"  # ``varm``: slides whose table had the gene, where `io.concat` filled in zeros
MEASURED = "measured"  # ``layers``: measured expression beside a prediction, in the prediction's unit
PARAMS = "params"  # ``uns[key]["params"]``: parameters of the step that wrote ``key``
# ``uns[key]["store"]``: path of the zarr that holds the values of a prediction, where the table does not
STORE = "store"
# ``uns["spatial"][slide]["scalefactors"]``: micrometers per full-resolution pixel (Space Ranger's name). ``attrs`` of
# a SpatialData: the same, by name of image
MPP = "microns_per_pixel"
# ``uns["image_*"]["params"]``: where the micrometers per pixel of each slide were taken from
MPP_SOURCE = "microns_per_pixel_from"
# ``uns["spatial"][slide]["scalefactors"]``: spot diameter in full-resolution pixels (Space Ranger's name)
SPOT_DIAMETER = "spot_diameter_fullres"
GENES = "spahgc_genes"  # ``uns``: what was done to the genes of a table to bring them to the names of others
ALIGNMENT = "alignment"  # ``uns``: verdict of :func:`spahgc.pp.check_alignment` on each slide, and what it fixed
IN_TISSUE = "in_tissue"  # ``obs``: whether a spot of a Visium array is under tissue, 1 or 0 (Space Ranger's name)
HEST = "hest"  # ``uns``: HEST's metadata by sample
SYNTHETIC = "synthetic"  # ``uns``: parameters of drawn slides
# Per-gene scores that :func:`spahgc.tl.evaluate` writes; ``var["{key}_{metric}"]`` is their mean over slides
METRICS = ("pearson", "spearman", "rmse", "mae", "pearson_depth_removed", "depth_only", "structure")
# Columns of the trust per gene that ``var["{key}_{name}"]`` holds, and their names there
TRUST = {"expected_pearson": "expected_pearson", "low": "trust_low", "high": "trust_high", "verdict": "trust"}


def image(encoder: str) -> str:
    """``obsm`` key of the embeddings of an encoder."""
    return f"{IMAGE_PREFIX}{encoder}"


def part(uns: Any, *path: str) -> Mapping[str, Any]:
    """Mapping at a path of ``uns``; empty if it is missing or someone wrote something else there."""
    for name in path:
        uns = uns.get(name) if isinstance(uns, Mapping) else None
    return uns if isinstance(uns, Mapping) else {}


def slot(key: str, what: str) -> str:
    """Key of a part of prediction `key`, e.g. ``spahgc_support``; ``docs/data_model.md`` lists them."""
    return f"{key}_{what}"


def check_key(key: str) -> str:
    """Return the name of a slot for results, or raise; slots with a meaning of their own are never overwritten."""
    if not key.strip(".") or not all(c.isalnum() or c in "_-." for c in key):
        raise ValueError(f"`key_added` must consist of letters, digits, '_', '-' and '.', got {key!r}.")
    taken = {value for value in globals().values() if isinstance(value, str)} - {PREDICTION}
    if key in taken or key.startswith("X_") or key.endswith(("_scores", "_evidence", "_trust", "_cv", "_support")):
        raise ValueError(f"key_added={key!r} is the name of a slot with another meaning. Choose another name.")
    return key
