"""Encoders by name: the table of known ones, and loading."""

from __future__ import annotations

import importlib
import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from .._checks import checked, format_names
from .._settings import logger
from ._base import EXTRA, Encode, Encoder, Precision
from ._texture import texture, texture_names

# Encoders of lazyslide-models, so that an unknown name is refused without importing it; a test compares them.
NAMES = [
    *("biomedclip", "chief", "conceptclip", "conch", "conch-madeleine", "conch_v1.5", "crisp", "crown"),
    *("ctranspath", "genbio-pathfm", "gigapath", "gigapath-flash", "gpfm", "h-optimus-0", "h-optimus-1"),
    *("h0-mini", "hibou-b", "hibou-l", "keep", "lunit-bt", "lunit-dino-s16", "lunit-dino-s8"),
    *("lunit-dino-s8-moozy", "lunit-mocov2", "lunit-swav", "mascaret", "medsiglip", "midnight", "mstar"),
    *("musk", "omiclip", "open-midnight", "path_orchestra", "phaet", "phikon", "phikonv2", "plip"),
    *("quiltnet-b16", "quiltnet-b16-pmb", "quiltnet-b32", "rudolfv2", "rudolfv2-b", "rudolfv2-s", "uni"),
    *("uni2", "virchow", "virchow2"),
]
ALIASES = {"resnet50": "timm:resnet50"}
# Sides of tiles in pixels of models whose transform is not the usual 224; a test compares them with the transforms of
# lazyslide-models.
SIDES = {
    **dict.fromkeys(("conch", "conch_v1.5", "medsiglip"), 448),
    **dict.fromkeys(("conceptclip", "musk"), 384),
    **dict.fromkeys(("gigapath", "gigapath-flash"), 256),
    "lunit-dino-s8-moozy": 248,
    "resnet50": 235,
}
# Models whose network is Python code of their repository on the hub: loading them runs it.
REMOTE_CODE = {
    *("conceptclip", "conch_v1.5", "genbio-pathfm", "hibou-b", "hibou-l", "mascaret", "open-midnight", "phaet"),
    *("rudolfv2", "rudolfv2-b", "rudolfv2-s"),
}


def resolve(
    encoder: str | Encode | Encoder, *, device: str | None = None, precision: Precision | None = None
) -> Encoder:
    """Encoder of a name (see :func:`load`), a `torch.nn.Module` or a callable; an :class:`Encoder` is returned as is.

    A callable gets one field of view of 224 pixels and is called from one thread. `device` and `precision` apply to
    names and modules.
    """
    if isinstance(encoder, str):
        return load(encoder, device=device, precision=precision)
    if isinstance(encoder, Encoder):
        if precision not in (None, encoder.precision):
            raise ValueError(
                f"precision={precision!r}, but encoder {encoder.name!r} was loaded in {encoder.precision}. Pass the "
                "precision to spahgc.encoders.load."
            )
        return encoder
    given: Any = encoder
    if not callable(given):
        hint = f" For weights of a known model: spahgc.encoders.load('uni2', weights={str(given)!r})."
        raise TypeError(
            "`encoder` must be a name in spahgc.encoders.table(), a torch.nn.Module, a result of spahgc.encoders.load, "
            "or a function from tiles, uint8 (n, 3, h, w), to embeddings (n, d), got an object of type "
            f"{type(given).__name__}.{hint if isinstance(given, Path) else ''}"
        )
    torch = sys.modules.get("torch")  # Whoever has a module has imported torch.
    if torch is not None and isinstance(given, torch.nn.Module):
        from ._network import from_module

        return from_module(given, device=device, precision=precision)
    name = str(getattr(given, "__name__", type(given).__name__))
    _check_no_network(name, precision)
    return Encoder(name, given, recipe={"source": "callable", "model": name})


@checked()
def load(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
    precision: Precision | None = None,
) -> Encoder:
    """Load an encoder by name, with weights from the Hugging Face hub or a file, for :func:`spahgc.pp.image_embedding`.

    Weights in this machine's cache of the hub are used from there; others are downloaded. Code in weight files is
    never run. One gray tile is encoded on loading, so that invalid weights are found before a slide is read.

    Parameters
    ----------
    name
        A name in :func:`table` (``"texture"``, ``"uni2"``, ...), or ``"timm:"`` and the name of any network of timm.
        All but ``"texture"`` require lazyslide-models (``pip install 'spahgc[models]'``).
    weights
        Weight file of that model as published (``pytorch_model.bin``, ``model.safetensors``, ``.pth``), or the folder
        made by ``hf download <repository> --local-dir <folder>``; for networks of timm and a few others (see the page
        on encoders). `None`: from the hub.
    device
        Torch device; `None`: :data:`spahgc.settings`.
    precision
        Precision in which the network computes; weights and embeddings are float32. `None`: bfloat16 on CUDA (float16
        on GPUs without it), and float32 elsewhere.

    Returns
    -------
    The encoder. Its ``recipe`` records source, model, repository, fingerprint of the weights, transform, pooling,
    width, tile side, and the version of lazyslide-models if that pools.

    Raises
    ------
    ImportError, FileNotFoundError, PermissionError, ConnectionError
        If a package or file is missing, or this machine has no access to a gated model or to the hub.
    ValueError
        If the name, device or precision does not exist, or a weight file is damaged, malicious or of another model.

    Examples
    --------
    >>> import spahgc
    >>> spahgc.encoders.load("texture").tile_px
    112
    >>> encoder = spahgc.encoders.load("uni2", weights="UNI2-h/pytorch_model.bin")  # doctest: +SKIP
    """
    path = None if weights is None else Path(weights).expanduser()
    if name == "texture":
        if path is not None:
            raise ValueError(f"Encoder 'texture' has no weights; remove weights={str(path)!r}.")
        _check_no_network(name, precision)
        # Increase `revision` when the statistics change, so that embeddings of both versions are not mixed.
        recipe = {"source": "spahgc", "model": name, "revision": 1, "width": len(texture_names())}
        return Encoder(name, texture, fields_of_view=(1.0, 2.0, 4.0), tile_px=112, threads=True, recipe=recipe)
    full, names = ALIASES.get(name, name), ["texture", *ALIASES, *NAMES]
    if name not in names and not full.startswith("timm:"):
        similar = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        raise ValueError(
            f"No encoder {name!r}. Available: {format_names(dict.fromkeys([*similar, *names]))}, and "
            "'timm:<name>' for any network of timm (see spahgc.encoders.table). Weights from a file: "
            f"spahgc.encoders.load(<model>, weights=<file>). Store existing embeddings in adata.obsm['image_{name}']."
        )
    hub = _hub(f"Encoder {name!r} requires")
    if full.startswith("timm:"):
        return hub.load_timm(full.removeprefix("timm:"), weights=path, device=device, precision=precision)
    return hub.load_registered(name, weights=path, device=device, precision=precision)


def _hub(who: str) -> Any:
    """Import the module of encoders with weights, whose packages are optional."""
    try:
        return importlib.import_module("spahgc.encoders._hub")
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another torch
        raise ImportError(f"{who} lazyslide-models, which cannot be imported ({error}). Run: {EXTRA}") from error


def _check_no_network(name: str, precision: Precision | None) -> None:
    if precision not in (None, "float32"):
        raise ValueError(f"precision={precision!r} does not apply to encoder {name!r}, which is not a torch network.")


def table() -> pd.DataFrame:
    """List the encoders that can be loaded by name, without downloading anything.

    In addition, ``"timm:<name>"`` is any network of timm, and a `torch.nn.Module` or a callable needs no name.

    Returns
    -------
    A table with one row per encoder (index ``encoder``) and the columns

    - ``width``: length of an embedding of one field of view, -1 if the card of the model does not say;
    - ``tile_px``: side of a tile in pixels; the model may use only its center;
    - ``microns_per_pixel``: resolution at which the model was trained; NaN if unknown or several;
    - ``license``, ``commercial``: license on the card of the model, and whether it allows commercial use;
    - ``gated``: whether its conditions must be accepted on ``page`` once, with an account;
    - ``download``: whether it has weights, which come from the Hugging Face hub unless they are on this machine;
    - ``parameters``: number of weights, NaN if the card does not say;
    - ``remote_code``: whether loading it runs Python code of its repository on the hub;
    - ``requires``: package that it requires besides ``spahgc[models]``, or "";
    - ``page``: web page of the model.

    Without lazyslide-models, only ``texture`` is listed.

    Examples
    --------
    >>> import spahgc
    >>> encoders = spahgc.encoders.table()
    >>> encoders.loc["texture", ["license", "page"]].tolist()
    ['BSD-3-Clause', '']
    """
    texture_row: dict[str, Any] = {
        **{"encoder": "texture", "width": len(texture_names()), "tile_px": 112, "microns_per_pixel": float("nan")},
        **{"license": "BSD-3-Clause", "commercial": True, "gated": False, "download": False, "parameters": 0.0},
        **{"remote_code": False, "requires": "", "page": ""},
    }
    rows = [texture_row]
    try:
        hub = _hub("All encoders but 'texture' require")
    except ImportError as error:
        logger.warning("%s", error)
        return pd.DataFrame(rows).set_index("encoder")
    resnet = {"encoder": "resnet50", "width": 2048, "license": "Apache-2.0", "download": True, "parameters": 25.6e6}
    page = "https://huggingface.co/timm/resnet50.a1_in1k"
    rows.append({**texture_row, **resnet, "tile_px": SIDES["resnet50"], "page": page})
    for name, card in sorted(hub.registry().items()):
        size = re.fullmatch(r"([\d.]+)([MB])", str(card.param_size))
        rows.append(
            {
                "encoder": name,
                "width": card.encode_dim or -1,
                "tile_px": SIDES.get(name, 224),
                "microns_per_pixel": hub.MPP.get(name, float("nan")),
                "license": " and ".join(card.license if isinstance(card.license, list) else [card.license]),
                "commercial": bool(card.commercial),
                "gated": bool(card.is_gated),
                "download": True,
                "parameters": float(size[1]) * {"M": 1e6, "B": 1e9}[size[2]] if size else float("nan"),
                "remote_code": name in REMOTE_CODE,
                "requires": hub.REQUIRES.get(name, ""),
                "page": card.hf_url or card.github_url or f"https://huggingface.co/{hub.repository_of(name, card)}",
            }
        )
    return pd.DataFrame(rows).set_index("encoder")
