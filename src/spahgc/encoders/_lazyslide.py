"""The one adapter to lazyslide-models: its tile encoders, and timm's networks, by name."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ._base import Encoder
from ._build import fitting, from_files, from_hub, without_classifier
from ._network import from_network
from ._transforms import described, described_processor
from ._weights import find_file, read_state

EXTRA = "pip install 'spahgc[models]'"

# Micrometres per pixel that a model was trained at: H-optimus-0 by its card, the others by the spacings that the
# documentation of slide2vec lists. Models of several resolutions (Virchow2, Midnight, MUSK, CONCH, ...), or of none
# that was found, are not here.
MPP = dict.fromkeys(
    ("gigapath", "h-optimus-0", "h-optimus-1", "h0-mini", "hibou-b", "hibou-l")
    + ("phikon", "phikonv2", "uni", "uni2", "virchow"),
    0.5,
)

# Repositories on the hub that a card does not name as the model asks for them.
REPOSITORIES = {
    "chief": "RendeiroLab/LazySlide-models-gpl",
    "ctranspath": "RendeiroLab/LazySlide-models-gpl",
    "hibou-l": "histai/hibou-l",
    "uni": "MahmoodLab/uni",
}
# A slide encoder whose tile encoder goes by another name.
NOT_TILES = {"titan": "conch_v1.5"}


def registry(wanted: str | None = None) -> dict[str, Any]:
    """Classes of lazyslide-models that turn a tile into a vector, by name.

    Parameters
    ----------
    wanted
        Name of the encoder that is looked for, for the message.

    Raises
    ------
    ImportError
        If lazyslide-models is not installed.
    """
    try:
        from lazyslide_models import MODEL_REGISTRY, ModelTask
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another torch
        raise ImportError(
            ("" if wanted is None else f"No encoder {wanted!r}: it is none of spahgc's own ('texture'). ")
            + f"The others come from lazyslide-models, which cannot be imported ({error}). Run: {EXTRA}"
        ) from error
    found = {}
    for name, model in MODEL_REGISTRY.items():
        tasks = model.task if isinstance(model.task, list) else [model.task]
        if (
            name not in NOT_TILES
            and {ModelTask.vision, ModelTask.multimodal} & set(tasks)
            and callable(getattr(model, "encode_image", None))
        ):
            found[name] = model
    return found


def repository_of(name: str, model: Any) -> str:
    """Repository on the hub that a model's weights are asked from."""
    return REPOSITORIES.get(name) or "/".join(str(model.hf_url).rstrip("/").split("/")[-2:])


def load_registered(name: str, *, weights: Path | None, device: str | None, precision: str | None) -> Encoder:
    """The encoder of a name in :func:`registry`."""
    model = registry()[name]
    repository = repository_of(name, model)
    if weights is None:
        built = from_hub(name, repository, model)
    else:
        built = from_files(name, repository, model, weights)
    return _encoder(
        name,
        built,
        source="lazyslide-models",
        repository=repository,
        width=model.encode_dim,
        microns_per_pixel=MPP.get(name),
        device=device,
        precision=precision,
    )


def load_timm(name: str, *, weights: Path | None, device: str | None, precision: str | None) -> Encoder:
    """The encoder that is a network of timm, by timm's name (``resnet50``, ``vit_small_patch16_224.dino``, ...)."""
    registry(f"timm:{name}")  # says what to install where timm is missing
    import timm
    from lazyslide_models import TimmModel

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(
            f"timm has no network {architecture!r} (encoder 'timm:{name}'). Like it: "
            f"{', '.join(timm.list_models(f'*{architecture[:6]}*')[:8]) or 'see timm.list_models()'}."
        )
    config = timm.get_pretrained_cfg(name if tag else architecture)
    repository = str(config.hf_hub_id or "")
    if repository.endswith("/"):
        repository += f"{architecture}.{config.tag}"
    if weights is not None:
        file = find_file(weights, model=name)
        state = without_classifier(read_state(file, model=name), config.classifier)
        overlay = {"state_dict": state, "file": None, "classifier": None, "custom_load": False}
        built = fitting(file, name, lambda: TimmModel(name, pretrained_cfg_overlay=overlay), draw=False)
    elif not repository:
        raise ValueError(
            f"No pretrained weights of timm's {name!r} are on the hub. Pass a file of your own: "
            f"spahgc.encoders.load('timm:{name}', weights=...)."
        )
    else:
        built = from_hub(name, repository, lambda: TimmModel(name))
    return _encoder(
        name,
        built,
        source="timm",
        repository=repository,
        width=None,
        microns_per_pixel=None,
        device=device,
        precision=precision,
    )


def _encoder(
    name: str,
    built: Any,
    *,
    source: str,
    repository: str,
    width: int | None,
    microns_per_pixel: float | None,
    device: str | None,
    precision: str | None,
) -> Encoder:
    transform = built.get_transform()
    if transform is None:  # the processor of a transformers model is called within encode_image
        processor = getattr(built, "img_processor", None) or built.processor
        tile_px, text = described_processor(getattr(processor, "image_processor", processor))
    else:
        tile_px, text = described(transform)
    network = built.model
    pool = getattr(network, "global_pool", None)
    # What lazyslide-models makes of the network's output changes with its versions, as the name of a method does not
    # tell; those of torch, timm and transformers change nothing but the rounding.
    pooled_by = {"versions": {"lazyslide-models": version("lazyslide-models")}} if source == "lazyslide-models" else {}
    encode = type(built).encode_image
    return from_network(
        re.sub(r"[^A-Za-z0-9_.-]", "_", name),
        network,
        prepare=transform or (lambda tiles: tiles),
        forward=built.encode_image,
        move=built.to,
        tile_px=tile_px,
        device=device,
        precision=precision,
        recipe={
            "source": source,
            "model": name,
            "repository": repository,
            "transform": text,
            "pooling": f"{encode.__module__}.{encode.__qualname__}"
            + (f", timm global_pool={pool}" if isinstance(pool, str) and pool else ""),
            **pooled_by,
        },
        width=width,
        microns_per_pixel=microns_per_pixel,
    )
