"""What an encoder is, the ones that are known by name, and the check of what one returns."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._checks import format_names
from .._slides import Float32
from ._weights import SUFFIXES

Tiles = NDArray[np.uint8]
Encode = Callable[[Tiles], Any]


@dataclass(frozen=True)
class Encoder:
    """An encoder and how it wants its tiles."""

    name: str
    encode: Encode
    """Tiles (n, 3, h, w) uint8 -> embeddings (n, d)."""
    fields_of_view: tuple[float, ...]
    """Sides of its fields of view, as multiples of the tile's side; their embeddings are joined."""
    tile_px: int
    """Side of its tiles in pixels."""
    threads: bool
    """It runs on one core without the interpreter lock, so that calling it from several threads uses several cores."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """All that decides whether two embeddings are comparable: str, bool, int, float, and lists and dicts of these."""
    microns_per_pixel: float | None = None
    """Resolution it was trained at, micrometres per pixel of its tiles; `None` where that is not known."""
    precision: str = "float32"
    """What its network computes in: ``"float32"``, ``"bfloat16"`` or ``"float16"``. What it returns is float32."""


def _texture() -> Encoder:
    from ._texture import texture, texture_names

    width = len(texture_names())
    return Encoder(
        "texture",
        texture,
        fields_of_view=(1.0, 2.0, 4.0),
        tile_px=112,
        threads=True,
        # `revision` goes up when the statistics change, so that embeddings of both kinds are not mixed.
        recipe={"source": "spahgc", "model": "texture", "revision": 1, "width": width},
    )


# Made when asked for: the compiled kernels take a moment to load.
ENCODERS: dict[str, Callable[[], Encoder]] = {"texture": _texture}
ALIASES = {"resnet50": "timm:resnet50"}


def resolve(encoder: str | Encode | Encoder, *, device: str | None = None, precision: str | None = None) -> Encoder:
    """The encoder that a name, a module or a callable stands for; an :class:`Encoder` stands for itself.

    Parameters
    ----------
    encoder
        A name, as in :func:`load`; a `torch.nn.Module` (see :func:`~spahgc.encoders._network.from_module`); or a
        callable from tiles, uint8 (n, 3, h, w), to embeddings (n, d). A callable gets one field of view of 224 pixels,
        and is called from one thread.
    device, precision
        Where and in what a name's or a module's network computes, as in :func:`load`. What has been loaded already,
        ``"texture"`` and a callable stay where they are.

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        If the name is unknown, or a precision is asked of what has no network or has been loaded with another.
    """
    if isinstance(encoder, str):
        return load(encoder, device=device, precision=precision)
    if isinstance(encoder, Encoder):
        if precision is not None and precision != encoder.precision:
            raise ValueError(
                f"precision={precision!r}: encoder {encoder.name!r} has been loaded in {encoder.precision}. Pass the "
                "precision to spahgc.encoders.load."
            )
        return encoder
    given: Any = encoder
    if not callable(given):
        hint = ""
        if isinstance(given, Path):
            hint = f" Weights of a known model: spahgc.encoders.load('uni2', weights={str(given)!r})."
        raise TypeError(
            "encoder is a name (spahgc.encoders.table() lists them), a torch.nn.Module, what spahgc.encoders.load "
            "returned, or a callable from tiles, uint8 (n, 3, h, w), to embeddings (n, d), not "
            f"{type(given).__name__}.{hint}"
        )
    if _is_module(given):
        from ._network import from_module

        return from_module(given, device=device, precision=precision)
    name = str(getattr(given, "__name__", type(given).__name__))
    _no_network(name, precision, "is a callable, which decides that itself")
    recipe = {"source": "callable", "model": name}
    return Encoder(name, given, fields_of_view=(1.0,), tile_px=224, threads=False, recipe=recipe)


def load(
    name: str, *, weights: str | Path | None = None, device: str | None = None, precision: str | None = None
) -> Encoder:
    """Load an encoder by name, with the weights of the hub or of a file, to pass to :func:`spahgc.pp.image_embedding`.

    Weights that are in this machine's cache of the Hugging Face hub are taken from there without asking the network;
    others are downloaded. No code that a weight file brings along is run. One grey tile is encoded on loading, so that
    weights that give NaN are found before a slide is read.

    Parameters
    ----------
    name
        A name in :func:`table` (``"texture"``, ``"uni2"``, ``"h-optimus-1"``, ``"resnet50"``, ...), or ``"timm:"`` and
        the name of any network of timm. All but ``"texture"`` need lazyslide-models
        (``pip install 'spahgc[models]'``).
    weights
        A weight file of that model as it is published (``pytorch_model.bin``, ``model.safetensors``, ``.pth``,
        ``.pt2``), or the folder that ``hf download <repository> --local-dir <folder>`` made. `None` takes the hub's.
    device
        Torch device; `None` takes :data:`spahgc.settings`.
    precision
        ``"float32"``, ``"bfloat16"`` or ``"float16"``: what the network computes in (the weights are kept, and
        embeddings come back, as float32). `None` takes bfloat16 on CUDA (float16 on GPUs without it) and float32
        elsewhere.

    Returns
    -------
    The encoder, with its ``recipe``: source, model, repository, fingerprint of the weights, transform, pooling, width,
    side of its tiles, and the version of lazyslide-models where that pools.

    Raises
    ------
    ImportError
        If the model needs a package that is not installed.
    FileNotFoundError
        If there is no such weight file or folder, or it lacks what the model needs besides the weights.
    PermissionError
        If the model is gated, and this machine has no access to it.
    ConnectionError
        If the weights are not on this machine and the hub cannot be reached.
    TypeError
        If `name` is no name.
    ValueError
        If the name is unknown, a weight file is damaged or another model's, the embeddings have another width than the
        model's card says or are not finite, or there is no such device or precision.

    Examples
    --------
    >>> encoder = spahgc.encoders.load("uni2", weights="UNI2-h/pytorch_model.bin", device="cuda")
    >>> spahgc.pp.image_embedding(sdata, encoder=encoder)
    >>> sdata["table"].obsm["image_uni2"].shape
    (n_spots, 1536)
    """
    if not isinstance(name, str):
        raise TypeError(
            f"name is the name of a model (spahgc.encoders.table() lists them), not {type(name).__name__}. A module or "
            "a callable goes to spahgc.pp.image_embedding(encoder=...) as it is."
        )
    path = None if weights is None else Path(weights).expanduser()
    if name in ENCODERS:
        if path is not None:
            raise ValueError(f"encoder {name!r} has no weights, and takes none ({path}).")
        _no_network(name, precision, "has no network")
        return ENCODERS[name]()
    full = ALIASES.get(name, name)
    if full.startswith("timm:"):
        from ._lazyslide import load_timm

        return load_timm(full.removeprefix("timm:"), weights=path, device=device, precision=precision)
    if Path(name).suffix in SUFFIXES or "/" in name or "\\" in name:
        raise ValueError(
            f"{name!r} is a path, and weights do not say what model they belong to. Run encoder = "
            f"spahgc.encoders.load(<model>, weights={name!r}) with a name in spahgc.encoders.table(), and pass that. "
            "An exported program (.pt2): pass torch.export.load(<file>).module()."
        )
    from ._lazyslide import NOT_TILES, load_registered, registry

    names = [*ENCODERS, *ALIASES, *registry(name)]
    if name not in names:
        like = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        known = f"{NOT_TILES[name]!r} is its encoder of tiles" if name in NOT_TILES else ""
        raise ValueError(
            f"No encoder {name!r}. {known or f'Like it: {format_names(like)}'}; spahgc.encoders.table() lists all, "
            f"'timm:<name>' is any network of timm. Embeddings that you have go into adata.obsm['image_{name}']."
        )
    return load_registered(name, weights=path, device=device, precision=precision)


def _no_network(name: str, precision: str | None, why: str) -> None:
    if precision not in (None, "float32"):
        raise ValueError(f"precision={precision!r}: encoder {name!r} {why}.")


def _is_module(encoder: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever has a module has imported torch
    return torch is not None and isinstance(encoder, torch.nn.Module)


def check_key(key: str) -> str:
    """A key that survives on disk: letters, digits, ``_``, ``-`` and ``.`` only."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
        raise ValueError(
            f"{key!r} is no good key for obsm: letters, digits, '_', '-' and '.' only. Pass key_added='image_<name>'."
        )
    return key


def checked(output: Any, n_tiles: int, *, name: str, width: int | None = None) -> Float32:
    """Embeddings as an encoder returned them, as float32 (n_tiles, width).

    Parameters
    ----------
    output
        What the encoder returned.
    n_tiles
        Number of tiles it was given.
    name
        Name of the encoder, for the messages.
    width
        Width that its embeddings should have; `None` takes any.

    Raises
    ------
    TypeError
        If it is not an array of floats.
    ValueError
        If it is not 2-d with n_tiles rows (and of that width), or it holds NaN or infinite values.
    """
    wanted = "width" if width is None else width
    expected = f"encoder {name!r} was given {n_tiles} tiles and should return floats ({n_tiles}, {wanted})"
    try:
        values = np.asarray(output)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{expected}, but returned {type(output).__name__}, which is no array: {error}. From torch, return "
            "output.detach().cpu().numpy()."
        ) from error
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"{expected}, but returned {type(output).__name__} of {values.dtype}.")
    if values.ndim != 2 or values.shape[0] != n_tiles or not 0 < values.shape[1] == (width or values.shape[1]):
        raise ValueError(f"{expected}, but returned the shape {values.shape}.")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as that
        values = values.astype(np.float32)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(f"{expected}, but {int(bad.sum())} of its rows hold NaN or infinite values.")
    return values
