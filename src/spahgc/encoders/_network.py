"""From a torch network to an encoder: its tiles, its device and precision, and what a recipe says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._settings import settings
from .._slides import Float32
from ._base import Encoder, Tiles, checked
from ._transforms import numbers
from ._weights import state_sha256

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "bfloat16", "float16")
# ImageNet's mean and standard deviation, in which torchvision's and most other networks are trained.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def precision_on(device: torch.device, precision: str | None) -> str:
    """The precision that a network computes in: as asked for, or by default half on CUDA and full elsewhere.

    Raises
    ------
    ValueError
        If there is no such precision, or the device does not have it.
    """
    import torch

    if precision is None:
        if device.type != "cuda":
            return "float32"
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, or None, not {precision!r}.")
    if precision == "float16" and device.type == "cpu":
        raise ValueError("precision='float16' is for GPUs; on the CPU take 'float32', which is the default there.")
    return precision


@dataclass(frozen=True, eq=False)
class Network:
    """Tiles, uint8 (n, 3, h, w), through a network: embeddings, float32 (n, d)."""

    name: str
    prepare: Callable[[Any], Any]
    """Of a uint8 tensor on the device, (n, 3, h, w): what `forward` takes."""
    forward: Callable[[Any], Any]
    device: torch.device
    precision: str
    width: int | None = None
    """Expected width; `None` takes any."""

    def __call__(self, tiles: Tiles) -> Float32:
        """Embeddings of tiles.

        Raises
        ------
        TypeError
            If the network returns no tensor.
        ValueError
            If the embeddings have another shape or width than expected, or hold NaN or infinite values.
        """
        import torch

        batch = torch.from_numpy(np.ascontiguousarray(tiles))
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        else:
            batch = batch.to(self.device)
        with torch.inference_mode():
            ready = self.prepare(batch)
            with torch.autocast(
                self.device.type,
                dtype=getattr(torch, self.precision),
                enabled=self.precision != "float32",
            ):
                out = self.forward(ready)
        if not isinstance(out, torch.Tensor):
            raise TypeError(
                f"encoder {self.name!r} should return a tensor ({len(tiles)}, width), but returned "
                f"{type(out).__name__}. Wrap it in a callable that takes the embedding out of it."
            )
        return checked(out.float().cpu().numpy(), len(tiles), name=self.name, width=self.width)


def from_network(
    name: str,
    network: torch.nn.Module,
    *,
    prepare: Callable[[Any], Any],
    forward: Callable[[Any], Any],
    tile_px: int,
    device: str | None,
    precision: str | None,
    recipe: Mapping[str, Any],
    width: int | None = None,
    microns_per_pixel: float | None = None,
    move: Callable[[Any], Any] | None = None,
) -> Encoder:
    """An encoder around a network, tried on one tile.

    Parameters
    ----------
    name
        Name of the encoder.
    network
        What holds the weights.
    prepare
        From uint8 tiles on the device to the input of `forward`.
    forward
        From that to embeddings.
    tile_px
        Side of its tiles.
    device, precision
        Where and in what it computes; `None` takes the setting, and the device's default.
    recipe
        What its caller knows of where it comes from; the weights' fingerprint, the width and the side of its tiles are
        added.
    width
        Expected width of the embeddings.
    microns_per_pixel
        Resolution that it was trained at.
    move
        Moves all of its parts to a device, where that is more than the network.

    Raises
    ------
    TypeError, ValueError
        If a tile gives no embedding of the expected width.
    """
    place = settings.torch_device(device)
    chosen = precision_on(place, precision)
    if network.training:
        with suppress(NotImplementedError):  # an exported program has no modes: it is what it was when it was exported
            network.eval()
    sha256 = state_sha256(network)
    (move or network.to)(place)
    encode = Network(name, prepare, forward, place, chosen, width)
    # One grey tile: weights that give NaN or another width are found before a slide is read.
    found = encode(np.full((1, 3, tile_px, tile_px), 128, np.uint8)).shape[1]
    return Encoder(
        name,
        Network(name, prepare, forward, place, chosen, found),
        fields_of_view=(1.0,),
        tile_px=tile_px,
        threads=False,
        recipe={**recipe, "weights_sha256": sha256, "width": found, "tile_px": tile_px},
        microns_per_pixel=microns_per_pixel,
        precision=chosen,
    )


def normaliser(mean: Any = MEAN, std: Any = STD, *, crop: int | None = None) -> tuple[Callable[[Any], Any], str]:
    """From uint8 tiles to normalised floats, on the device that the tiles are on; and what it does, as text.

    Parameters
    ----------
    mean, std
        Of the three channels, on the scale from 0 to 1.
    crop
        Side of the centre that is cut out; `None` keeps all.
    """
    import torch

    shift, scale = (torch.tensor(tuple(map(float, values))).view(1, 3, 1, 1) for values in (mean, std))

    def prepare(tiles: torch.Tensor) -> torch.Tensor:
        if crop is not None:
            top, left = ((side - crop) // 2 for side in tiles.shape[-2:])
            tiles = tiles[..., top : top + crop, left : left + crop]
        return (tiles.float() / 255 - shift.to(tiles.device)) / scale.to(tiles.device)

    cut = "" if crop is None else f"centre crop {crop}; "
    return prepare, f"{cut}scale to 0..1; normalise mean {numbers(mean)} sd {numbers(std)}"


def from_module(module: torch.nn.Module, *, device: str | None = None, precision: str | None = None) -> Encoder:
    """The encoder that a module of the user's is.

    A timm model (one with a ``pretrained_cfg``) gets tiles of its own size, normalised as it was trained, and gives its
    pooled features, whether or not it has a classifier. Any other module gets tiles of 224 pixels, scaled to 0..1 and
    normalised with ImageNet's mean and standard deviation, and gives what it returns. It is put into evaluation mode
    and moved to the device, as it is and not as a copy.
    """
    config = getattr(module, "pretrained_cfg", None)
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    if not isinstance(config, Mapping):
        prepare, text = normaliser()
        recipe = {"source": "torch", "model": kind, "transform": text, "pooling": "output of the module"}
        return from_network(
            type(module).__name__,
            module,
            prepare=prepare,
            forward=module,
            tile_px=224,
            device=device,
            precision=precision,
            recipe=recipe,
        )
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(module)
    _, height, width = data["input_size"]
    if height != width:
        raise ValueError(f"encoder {kind} takes images of {height} x {width} pixels; tiles are square.")
    # As timm evaluates: resized to side / crop_pct (the tile has that size already), then its centre.
    tile_px = int(np.floor(height / data["crop_pct"]))
    prepare, text = normaliser(data["mean"], data["std"], crop=height if tile_px != height else None)
    model: Any = module
    pooled = getattr(module, "num_classes", 0) > 0

    def features(images: torch.Tensor) -> torch.Tensor:
        return model.forward_head(model.forward_features(images), pre_logits=True)

    name = str(config.get("architecture") or type(module).__name__)
    return from_network(
        name,
        module,
        prepare=prepare,
        forward=features if pooled else module,
        tile_px=tile_px,
        device=device,
        precision=precision,
        recipe={
            "source": "timm",
            "model": name,
            "transform": text,
            "pooling": f"timm, global_pool={getattr(module, 'global_pool', '')!s}",
        },
    )
