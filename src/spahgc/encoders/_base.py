"""What an encoder is, the ones that are known by name, and the check of what one returns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._slides import Float32

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
    from ._texture import texture

    return Encoder("texture", texture, fields_of_view=(1.0, 2.0, 4.0), tile_px=112, threads=True)


# Made when asked for: the compiled kernels take a moment to load.
ENCODERS: dict[str, Callable[[], Encoder]] = {"texture": _texture}


def resolve(encoder: str | Encode | Encoder, *, device: str | None = None, precision: str | None = None) -> Encoder:
    """The encoder that a name or a callable stands for; an :class:`Encoder` stands for itself.

    Parameters
    ----------
    encoder
        A name in :data:`ENCODERS`, or a callable from tiles, uint8 (n, 3, h, w), to embeddings (n, d). A callable gets
        one field of view of 224 pixels, and is called from one thread.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If the name is unknown.
    """
    if isinstance(encoder, Encoder):
        return encoder
    if isinstance(encoder, str):
        if encoder not in ENCODERS:
            raise ValueError(
                f"No encoder {encoder!r}. Available: {', '.join(sorted(ENCODERS))}, or a callable from tiles, uint8 "
                "(n, 3, h, w), to embeddings (n, d). Embeddings that you have already go into "
                f"adata.obsm['image_{encoder}']."
            )
        return ENCODERS[encoder]()
    if not callable(encoder):
        raise TypeError(
            f"encoder is a name ({', '.join(sorted(ENCODERS))}) or a callable from tiles, uint8 (n, 3, h, w), to "
            f"embeddings (n, d), not {type(encoder).__name__}."
        )
    name = str(getattr(encoder, "__name__", type(encoder).__name__))
    return Encoder(name, encoder, fields_of_view=(1.0,), tile_px=224, threads=False)


def check_key(key: str) -> str:
    """A key that survives on disk: letters, digits, ``_``, ``-`` and ``.`` only."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
        raise ValueError(
            f"{key!r} is no good key for obsm: letters, digits, '_', '-' and '.' only. Pass key_added='image_<name>'."
        )
    return key


def checked(output: Any, n_tiles: int, *, name: str) -> Float32:
    """Embeddings as an encoder returned them, as float32 (n_tiles, width).

    Parameters
    ----------
    output
        What the encoder returned.
    n_tiles
        Number of tiles it was given.
    name
        Name of the encoder, for the messages.

    Raises
    ------
    TypeError
        If it is not an array of floats.
    ValueError
        If it is not 2-d with n_tiles rows or it holds NaN or infinite values.
    """
    expected = f"encoder {name!r} was given {n_tiles} tiles and should return floats ({n_tiles}, width)"
    try:
        values = np.asarray(output)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{expected}, but returned {type(output).__name__}, which is no array: {error}. From torch, return "
            "output.detach().cpu().numpy()."
        ) from error
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"{expected}, but returned {type(output).__name__} of {values.dtype}.")
    if values.ndim != 2 or values.shape[0] != n_tiles or values.shape[1] == 0:
        raise ValueError(f"{expected}, but returned the shape {values.shape}.")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as that
        values = values.astype(np.float32)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(f"{expected}, but {int(bad.sum())} of its rows hold NaN or infinite values.")
    return values
