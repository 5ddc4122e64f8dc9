"""The encoders that are known by name, as a table."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from ._base import ENCODERS

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("spahgc")

# Sides of tiles, in pixels, of models whose transform is not the usual 224; a test holds those that can be built
# without their weights against the transform of lazyslide-models.
SIDES = {
    "conceptclip": 384,
    "conch": 448,
    "conch_v1.5": 448,
    "gigapath": 256,
    "gigapath-flash": 256,
    "lunit-dino-s8-moozy": 248,
    "medsiglip": 448,
    "musk": 384,
    "resnet50": 235,
}
# Models whose network is Python code of their repository on the hub: loading them runs it.
REMOTE_CODE = {
    "conceptclip",
    "conch_v1.5",
    "genbio-pathfm",
    "hibou-b",
    "hibou-l",
    "mascaret",
    "open-midnight",
    "phaet",
    "rudolfv2",
    "rudolfv2-b",
    "rudolfv2-s",
}
# Models that need a package which lazyslide-models does not bring.
REQUIRES = {
    "biomedclip": "open_clip_torch",
    "conch": "conch (github.com/mahmoodlab/CONCH)",
    "conch-madeleine": "conch (github.com/mahmoodlab/CONCH)",
    "hibou-b": "transformers<5",
    "hibou-l": "transformers<5",
    "musk": "musk (github.com/lilab-stanford/MUSK)",
    "omiclip": "open_clip_torch",
    "quiltnet-b16": "open_clip_torch",
    "quiltnet-b16-pmb": "open_clip_torch",
    "quiltnet-b32": "open_clip_torch",
}
COLUMNS = (
    "width",
    "tile_px",
    "microns_per_pixel",
    "licence",
    "commercial",
    "gated",
    "download",
    "parameters",
    "remote_code",
    "requires",
    "page",
)


def table() -> pd.DataFrame:
    """The encoders that have a name, one row each; nothing is downloaded.

    Beside these, ``"timm:<name>"`` is any network of timm, and a `torch.nn.Module` or a callable need no name.

    Returns
    -------
    A table with the name as index and the columns

    ``width``
        Values of an embedding (of one field of view), -1 where the model's card does not say.
    ``tile_px``
        Side of a tile in pixels; the model may take less of it, where its transform cuts out the centre.
    ``microns_per_pixel``
        Resolution that it was trained at; NaN where that is not known, or where there were several.
    ``licence``, ``commercial``
        As its card says; may it be used commercially?
    ``gated``
        Its conditions have to be accepted on ``page``, once, by whoever is logged in.
    ``download``
        It has weights, which come from the Hugging Face hub unless they are on this machine.
    ``parameters``
        Number of weights, NaN where the card does not say.
    ``remote_code``
        Loading it runs Python code from its repository on the hub.
    ``requires``
        A package that it needs besides ``spahgc[models]``, or "".
    ``page``
        Its page.

    Without lazyslide-models it has the row ``texture`` alone, and ``attrs["missing"]`` (and the log) says what to
    install.

    Examples
    --------
    >>> encoders = spahgc.encoders.table()
    >>> encoders[~encoders["gated"] & (encoders["microns_per_pixel"] == 0.5)].index.tolist()
    ['h-optimus-0', 'phikon', 'phikonv2']
    """
    import pandas as pd

    rows: dict[str, list[Any]] = {}
    texture = ENCODERS["texture"]()
    rows["texture"] = [
        texture.recipe["width"], texture.tile_px, float("nan"), "BSD-3-Clause", True, False, False, 0.0, False, "", ""
    ]  # fmt: skip
    missing = ""
    try:
        from ._lazyslide import MPP, registry, repository_of

        models = registry()
    except ImportError as error:
        missing = str(error)
        logger.warning("%s", missing)
    else:
        rows["resnet50"] = [
            2048, SIDES["resnet50"], float("nan"), "Apache-2.0", True, False, True, 25.6e6, False, "",
            "https://huggingface.co/timm/resnet50.a1_in1k",
        ]  # fmt: skip
        for name in sorted(models):
            card = models[name]
            licence = card.license if isinstance(card.license, list) else [card.license]
            rows[name] = [
                card.encode_dim or -1,
                SIDES.get(name, 224),
                MPP.get(name, float("nan")),
                " and ".join(licence),
                bool(card.commercial),
                bool(card.is_gated),
                True,
                _count(card.param_size),
                name in REMOTE_CODE,
                REQUIRES.get(name, ""),
                card.hf_url or card.github_url or f"https://huggingface.co/{repository_of(name, card)}",
            ]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS)).rename_axis("encoder")
    if missing:
        found.attrs["missing"] = missing
    return found


def _count(size: Any) -> float:
    """A number of parameters as a card writes it: ``"303.4M"``, ``"1.13B"``."""
    found = re.fullmatch(r"([\d.]+)([MB])", str(size))
    return float(found[1]) * {"M": 1e6, "B": 1e9}[found[2]] if found else float("nan")
