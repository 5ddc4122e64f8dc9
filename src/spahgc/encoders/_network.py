"""Torch module as an encoder: device, precision, preprocessing, and what its recipe records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from .._settings import settings
from .._slides import Float32
from ._base import Encoder, Precision, Tiles, check_embeddings

# Mean and standard deviation of ImageNet, with which most networks are trained.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def precision_on(device: torch.device, precision: Precision | None) -> Precision:
    """Precision of a network on a device: as requested, or else half precision on CUDA and float32 elsewhere."""
    if precision == "float16" and device.type == "cpu":
        raise ValueError("precision='float16' needs a GPU. Use 'float32' on the CPU, which is the default.")
    if precision is not None or device.type != "cuda":
        return precision or "float32"
    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def _embed(
    tiles: Tiles,
    *,
    name: str,
    prepare: Callable[[Any], Any],
    forward: Callable[[Any], Any],
    device: torch.device,
    precision: Precision,
    width: int | None,
) -> Float32:
    """Map tiles, uint8 (n, 3, h, w), to embeddings, one finite row of `width` values per tile."""
    batch = torch.from_numpy(np.ascontiguousarray(tiles))
    if device.type == "cuda":
        batch = batch.pin_memory()
    batch = batch.to(device, non_blocking=True)
    with torch.inference_mode():
        ready = prepare(batch)
        with torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32"):
            out = forward(ready)
    if not isinstance(out, torch.Tensor):
        raise TypeError(
            f"Encoder {name!r} should return a tensor ({len(tiles)}, width), but returned {type(out).__name__}. Wrap "
            "it in a function that returns the embedding alone."
        )
    return check_embeddings(out.float().cpu().numpy(), len(tiles), name=name, width=width)


def from_network(
    name: str,
    network: torch.nn.Module,
    *,
    prepare: Callable[[Any], Any],
    forward: Callable[[Any], Any],
    tile_px: int,
    device: str | None,
    precision: Precision | None,
    recipe: Mapping[str, Any],
    width: int | None = None,
    microns_per_pixel: float | None = None,
) -> Encoder:
    """Wrap a network as an encoder and test it on one gray tile, which reveals NaN weights or a wrong width early.

    `prepare` maps uint8 tiles on the device to the input of `forward`. The recipe gains the fingerprint of the
    weights, the width and the side of the tiles.
    """
    on = settings.torch_device(device)
    chosen = precision_on(on, precision)
    with suppress(NotImplementedError):  # Exported programs have no modes.
        network.eval()
    sha256 = state_sha256(network)
    network.to(on)
    embed = partial(_embed, name=name, prepare=prepare, forward=forward, device=on, precision=chosen)
    width = embed(np.full((1, 3, tile_px, tile_px), 128, np.uint8), width=width).shape[1]
    return Encoder(
        name,
        partial(embed, width=width),
        tile_px=tile_px,
        recipe={**recipe, "weights_sha256": sha256, "width": width, "tile_px": tile_px},
        microns_per_pixel=microns_per_pixel,
        precision=chosen,
    )


def from_module(module: torch.nn.Module, *, device: str | None = None, precision: Precision | None = None) -> Encoder:
    """Wrap a module of the user as an encoder.

    A timm model (with a ``pretrained_cfg``) gets tiles of its own size and normalization, and returns pooled features
    even if it has a classifier. Any other module gets tiles of 224 pixels, normalized with ImageNet statistics.
    """
    config = getattr(module, "pretrained_cfg", None)
    model: Any = module
    mean, std, side, tile_px, forward = MEAN, STD, 224, 224, model
    name, kind = type(module).__name__, f"{type(module).__module__}.{type(module).__qualname__}"
    recipe = {"source": "torch", "model": kind, "pooling": "output of the module"}
    if isinstance(config, Mapping):
        from timm.data import resolve_model_data_config

        data = resolve_model_data_config(module)
        _, side, width = data["input_size"]
        if side != width:
            raise ValueError(f"Encoder {kind} takes images of {side} x {width} pixels, but tiles are square.")
        # timm evaluates on the center of an image that is resized to side / crop_pct; tiles have that size already.
        mean, std, tile_px = data["mean"], data["std"], int(np.floor(side / data["crop_pct"]))
        if getattr(module, "num_classes", 0) > 0:

            def forward(images: torch.Tensor) -> torch.Tensor:
                return model.forward_head(model.forward_features(images), pre_logits=True)

        name = str(config.get("architecture") or name)
        recipe = {
            "source": "timm",
            "model": name,
            "pooling": f"timm, global_pool={getattr(module, 'global_pool', '')!s}",
        }
    shift, scale = (torch.tensor(tuple(map(float, values))).view(1, 3, 1, 1) for values in (mean, std))

    def prepare(tiles: torch.Tensor) -> torch.Tensor:
        top, left = ((length - side) // 2 for length in tiles.shape[-2:])
        center = tiles[..., top : top + side, left : left + side] if tile_px != side else tiles
        return (center.float() / 255 - shift.to(tiles.device)) / scale.to(tiles.device)

    cut = "" if tile_px == side else f"center crop {side}; "
    recipe["transform"] = f"{cut}scale to 0..1; normalize mean {tuple(mean)} sd {tuple(std)}"
    return from_network(
        name,
        module,
        prepare=prepare,
        forward=forward,
        tile_px=tile_px,
        device=device,
        precision=precision,
        recipe=recipe,
    )


def state_sha256(network: Any) -> str:
    """Fingerprint of the floating-point tensors of a network, whatever their names and order.

    Names are left out because they change with the versions of timm and transformers while the weights do not.
    """

    def digest(tensor: torch.Tensor) -> bytes:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        header = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
        return hashlib.sha256(header + hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()).digest()

    tensors = [value for value in network.state_dict().values() if value.is_floating_point()]
    with ThreadPoolExecutor() as pool:
        return hashlib.sha256(b"".join(sorted(pool.map(digest, tensors)))).hexdigest()
