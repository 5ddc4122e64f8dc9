"""Interface of an encoder, and validation of the embeddings it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._slides import Float32

Tiles = NDArray[np.uint8]
Encode = Callable[[Tiles], Any]
EXTRA = "pip install 'spahgc[models]'"
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Encoder:
    """Function from tiles to embeddings, with the tiles it expects and the provenance of its weights.

    Attributes
    ----------
    name
        Name, used in the key of its embeddings.
    encode
        Maps tiles, uint8 (n, 3, h, w), to embeddings, float (n, d).
    fields_of_view
        Sides of its fields of view as multiples of the tile side; their embeddings are concatenated.
    tile_px, microns_per_pixel
        Side of its tiles in pixels, and the resolution of its training tiles; `None` if unknown.
    threads
        Whether it runs on one core without the interpreter lock, so that calls from several threads run in parallel.
    recipe
        Everything that decides whether two embeddings are comparable: str, bool, int, float, lists and dicts.
    precision
        Precision in which its network computes; it always returns float32.
    """

    name: str
    encode: Encode
    fields_of_view: tuple[float, ...] = (1.0,)
    tile_px: int = 224
    threads: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    microns_per_pixel: float | None = None
    precision: Precision = "float32"


def check_embeddings(output: Any, n_tiles: int, *, name: str, width: int | None = None) -> Float32:
    """Convert the output of an encoder to float32 (n_tiles, width), or raise if it is not one finite row per tile."""
    expected = f"Encoder {name!r} was given {n_tiles} tiles and should return floats ({n_tiles}, {width or 'width'})"
    try:
        values = np.asarray(output)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{expected}, but returned {type(output).__name__}, which is not an array: {error}. From torch, return "
            "output.detach().cpu().numpy()."
        ) from error
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"{expected}, but returned {type(output).__name__} of {values.dtype}.")
    if values.ndim != 2 or values.shape[0] != n_tiles or not 0 < values.shape[1] == (width or values.shape[1]):
        raise ValueError(f"{expected}, but returned shape {values.shape}.")
    with np.errstate(over="ignore"):  # Values beyond float32 become infinite and are reported below.
        values = values.astype(np.float32)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(f"{expected}, but {int(bad.sum())} of its rows have NaN or infinite values.")
    return values


def hub_error(error: Exception, what: str, page: str, *, files: str, again: str) -> OSError:
    """Error that says what to do if the hub refuses files (`files`: another way to them) or does not give them."""
    from huggingface_hub import constants

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in {401, 403, 404}:  # 404 for hidden repositories, 401 for an invalid token
        return PermissionError(
            f"The Hugging Face hub refuses to give {what} to this machine: access is gated, and no account that "
            "accepted the conditions is logged in here (or its token is no longer valid). Accept them on "
            f"{page}, then run `hf auth login` (`huggingface-cli login` before huggingface_hub 0.34) here with a token "
            f"of that account. {files}"
        )
    reason = f"answered {status}" if status else f"cannot be reached ({type(error).__name__})"
    if constants.HF_HUB_OFFLINE:
        reason = "is switched off (HF_HUB_OFFLINE is set)"
    return ConnectionError(f"Could not download {what}: the Hugging Face hub ({constants.ENDPOINT}) {reason}. {again}")
