"""Pathology encoders of lazyslide-models and networks of timm, with weights from the Hugging Face hub or from files."""

from __future__ import annotations

import json
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from lazyslide_models import MODEL_REGISTRY, ModelTask, TimmModel

from ._base import EXTRA, Encoder, hub_error
from ._network import from_network

# Training resolution in micrometers per pixel: H-optimus-0 by its card, the others by the spacings in the
# documentation of slide2vec. Models with several (Virchow2, Midnight, MUSK, CONCH, ...) or unknown ones are not listed.
MPP = dict.fromkeys(
    ("gigapath", "h-optimus-0", "h-optimus-1", "h0-mini", "hibou-b", "hibou-l")
    + ("phikon", "phikonv2", "uni", "uni2", "virchow"),
    0.5,
)
# Repositories on the hub that the card of a model does not name as its class requests them.
REPOSITORIES = {
    "chief": "RendeiroLab/LazySlide-models-gpl",
    "ctranspath": "RendeiroLab/LazySlide-models-gpl",
    "hibou-l": "histai/hibou-l",
    "uni": "MahmoodLab/uni",
}
# Packages that a model requires and lazyslide-models does not install.
REQUIRES = {
    **dict.fromkeys(("conch", "conch-madeleine"), "conch (github.com/mahmoodlab/CONCH)"),
    **dict.fromkeys(("hibou-b", "hibou-l"), "transformers<5"),
    **dict.fromkeys(("biomedclip", "omiclip", "quiltnet-b16", "quiltnet-b16-pmb", "quiltnet-b32"), "open_clip_torch"),
    "musk": "musk (github.com/lilab-stanford/MUSK)",
}

# Classes that read a weight file (plip: a folder) themselves:
READ_FILES = {"conch", "conch-madeleine", "crisp", "crown", "gigapath-flash", "omiclip", "plip"}
# Architectures of models for which the weights are enough; others of timm need the config.json of their folder.
ARCHITECTURES = {
    "gpfm": "vit_large_patch14_dinov2.lvd142m",
    "uni": "vit_large_patch16_224",
    "uni2": "vit_giant_patch14_224",
}

SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
# Weights in a folder of the Hugging Face hub, by preference.
NAMES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_LOCK = threading.RLock()


def registry() -> dict[str, Any]:
    """Classes of lazyslide-models that embed tiles, by name."""
    return {
        name: model
        for name, model in MODEL_REGISTRY.items()
        if name != "titan"  # a slide encoder; conch_v1.5 is its tile encoder
        and callable(getattr(model, "encode_image", None))
        and {ModelTask.vision, ModelTask.multimodal} & set(model.task if isinstance(model.task, list) else [model.task])
    }


def repository_of(name: str, model: Any) -> str:
    """Repository on the hub that holds the weights of a model."""
    return REPOSITORIES.get(name) or "/".join(str(model.hf_url).rstrip("/").split("/")[-2:])


def load_registered(name: str, *, weights: Path | None, **computed: Any) -> Encoder:
    """Load an encoder of :func:`registry`."""
    model = registry()[name]
    repository, from_file = repository_of(name, model), partial(_from_file, name, model)
    from_cache = (issubclass(model, TimmModel) or name in ARCHITECTURES) and name not in READ_FILES
    built = from_file(weights) if weights else _from_hub(name, repository, model, from_file if from_cache else None)
    # lazyslide-models pools the output of the network, which may change between its versions.
    origin = {"source": "lazyslide-models", "versions": {"lazyslide-models": version("lazyslide-models")}}
    return _encoder(name, built, {**origin, "repository": repository}, model.encode_dim, **computed)


def load_timm(name: str, *, weights: Path | None, **computed: Any) -> Encoder:
    """Load a network of timm by its name there, such as ``resnet50`` or ``vit_small_patch16_224.dino``."""
    config = timm.get_pretrained_cfg(name)
    repository = str(getattr(config, "hf_hub_id", None) or "")
    architecture = name.partition(".")[0]
    if repository.endswith("/"):
        repository += f"{architecture}.{config.tag}"
    if config is None or not (weights or repository):
        raise ValueError(
            f"timm has no pretrained network {name!r} (encoder 'timm:{name}'). Similar: "
            f"{', '.join(timm.list_models(f'*{architecture[:6]}*')[:8]) or 'none'}. All: timm.list_models("
            "pretrained=True). For other networks, pass a weight file: spahgc.encoders.load(..., weights=...)."
        )

    def from_file(path: Path) -> Any:
        file = find_file(path, model=name)
        with _explained(file, name):
            return TimmModel(name, pretrained_cfg_overlay=_overlay(read_state(file), config.classifier))

    built = from_file(weights) if weights else _from_hub(name, repository, partial(TimmModel, name), from_file)
    return _encoder(name, built, {"source": "timm", "repository": repository}, None, **computed)


def _encoder(name: str, built: Any, origin: dict[str, Any], width: int | None, **computed: Any) -> Encoder:
    """Wrap a model of lazyslide-models, and record its transform and pooling in the recipe."""
    transform = built.get_transform()
    if transform is None:  # Models of transformers call their processor in encode_image.
        processor = getattr(built, "img_processor", None) or built.processor
        tile_px, text = describe_processor(getattr(processor, "image_processor", processor))
    else:
        tile_px, text = describe_transform(transform)
    pooling = f"{built.encode_image.__module__}.{built.encode_image.__qualname__}"
    if isinstance(getattr(built.model, "global_pool", None), str):
        pooling += f", timm global_pool={built.model.global_pool}"
    return from_network(
        re.sub(r"[^A-Za-z0-9_.-]", "_", name),
        built.model,
        prepare=transform or (lambda tiles: tiles),
        forward=built.encode_image,
        tile_px=tile_px,
        recipe={**origin, "model": name, "transform": text, "pooling": pooling},
        width=width,
        microns_per_pixel=MPP.get(name),
        **computed,
    )


def describe_transform(transform: Any) -> tuple[int, str]:
    """Side of the tiles that a transform of torchvision does not resize, and its steps as text."""
    steps = [step for step in transform.transforms if type(step).__name__ != "ToImage"]
    sizes = [step.size for step in steps if hasattr(step, "size")]
    sides = set(sizes[0] if isinstance(sizes[0], list | tuple) else [sizes[0]]) if sizes else {224}
    if len(sides) > 1:
        raise ValueError(f"{transform} resizes images to {sizes[0]}, but tiles are square.")
    return int(sides.pop()), "; ".join(map(str, steps))


def describe_processor(processor: Any) -> tuple[int, str]:
    """Side of the tiles that an image processor of transformers does not resize, and its settings as text."""
    settings = processor.to_dict()
    size = settings.get("size") or {}
    wanted = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor")
    text = [f"{key}={settings[key]}" for key in (*wanted, "do_normalize", "image_mean", "image_std") if key in settings]
    return int(size.get("height") or size.get("shortest_edge") or 224), "; ".join(text)


def _from_hub(
    name: str, repository: str, download: Callable[[], Any], from_folder: Callable[[Path], Any] | None
) -> Any:
    """Build a model from the cache of the hub, without contacting the hub if `from_folder` can, or by downloading."""
    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
        if from_folder is not None:
            return from_folder(folder)
    except FileNotFoundError:  # The cache holds nothing of it, or not all.
        check_access(name, repository)
    with _weights_only():
        return download()


def _from_file(name: str, model: Any, weights: Path) -> Any:
    """Build a model of lazyslide-models from a weight file, or from a folder made by ``hf download``."""
    if not (issubclass(model, TimmModel) or name in {*ARCHITECTURES, *READ_FILES}):
        raise ValueError(
            f"Encoder {name!r} cannot be loaded from {weights}, because its class only reads the cache of the hub. "
            "Load it by name on a machine with a network, copy the folder models--"
            f"{repository_of(name, model).replace('/', '--')} of that cache into the cache here, and load it by name "
            "with the environment variable HF_HUB_OFFLINE=1."
        )
    file = find_file(weights, model=name)
    with _explained(file, name):
        state = read_state(file)  # No file that contains code gets further than this.
        if name in READ_FILES:
            return model(model_path=str(file.parent if name == "plip" else file))
        if name == "gpfm":
            built = object.__new__(model)  # Its constructor downloads the weights.
            options = {"img_size": 224, "init_values": 1e-5, "pretrained_cfg_overlay": _overlay(state, "head")}
            built.model = TimmModel(ARCHITECTURES[name], **options).model
            return built
        return _load_timm(name, model, state, file.parent)


def _load_timm(name: str, model: Any, state: dict[str, Any], folder: Path) -> Any:
    """Construct a model with the options of its class, but with local weights instead of those on the hub."""
    source, classifier = ARCHITECTURES.get(name), "head"
    if source is None:
        source = f"local-dir:{folder}"
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} has no config.json, which describes encoder {name!r}. Run `hf download "
                f"{repository_of(name, model)} --local-dir <folder>` on a machine with a network and pass that folder."
            )
        config = json.loads((folder / "config.json").read_text())
        classifier = config.get("pretrained_cfg", config).get("classifier")

    class Local(TimmModel):
        """Base class of the model that is constructed from the weights given here."""

        def __init__(self, repository: str, **options: Any) -> None:
            super().__init__(source, pretrained_cfg_overlay=_overlay(state, classifier), **options)

    return type(model.__name__, (model, Local), {})()


def _overlay(state: dict[str, Any], classifier: Any) -> dict[str, Any]:
    """Settings with which timm loads all of a state dict into a network without classifier."""
    heads = {classifier} if isinstance(classifier, str) else set(classifier or ())
    state = {key: value for key, value in state.items() if key.rpartition(".")[0] not in heads}
    return {"state_dict": state, "source": "", "file": None, "classifier": None, "custom_load": False}


@contextmanager
def _weights_only() -> Iterator[None]:
    """Keep torch from running code in weight files, even if a library requests it, and silence warnings."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = os.environ.get(FORCE)
        os.environ[FORCE] = "1"
        try:
            yield
        finally:
            os.environ.pop(FORCE)
            os.environ.update({} if before is None else {FORCE: before})


@contextmanager
def _explained(file: Path, name: str) -> Iterator[None]:
    """Turn errors of loading a weight file into one that names the file and the encoder."""
    try:
        with _weights_only():
            yield
    except FileNotFoundError:
        raise
    except ImportError as error:
        raise ImportError(f"Encoder {name!r} requires {REQUIRES.get(name, EXTRA)}: {error}") from error
    except Exception as error:
        why = shorten(str(error), 300, placeholder=" ...").rstrip(".") or type(error).__name__
        if "weights_only" in why or "Weights only" in why:
            why = (
                "it is no weight file (damaged, a web page or a pointer of Git LFS), or contains code that would run "
                "when it is loaded. It was not loaded"
            )
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) does not hold the weights of encoder {name!r}: {why}. If it is "
            "damaged or truncated, download it again; if it belongs to another model, pass the right file."
        ) from error


def find_file(path: Path, *, model: str) -> Path:
    """Weight file at a path: the file itself, or the one in a folder made by ``hf download``."""
    usual = [path / name for name in NAMES if (path / name).is_file()]
    files = [path] if path.is_file() else usual[:1] or sorted(f for f in path.glob("*") if f.suffix in SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{path} is no file or folder with a file {', '.join(SUFFIXES)} for encoder {model!r}.")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"The folder {path} contains several weight files: {names}. Pass the one of {model!r}.")
    return files[0]


def read_state(path: Path) -> dict[str, Any]:
    """Tensors of a weight file by name, from safetensors or ``torch.save``; never runs code in the file."""
    state = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
    odd = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if odd or not state:
        raise ValueError(f"it is not a state dict: {', '.join(odd[:3]) or 'nothing'} in place of tensors")
    return state


def check_access(name: str, repository: str) -> None:
    """Ask the hub once whether the weights of a model may be downloaded; raise an error that says what to do if not."""
    # Errors are not chained (`from None`): a request holds the token it was made with.
    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json"), timeout=5.0)
    except EntryNotFoundError:
        return  # Not every repository has this file; the answer shows that access is granted.
    except Exception as error:  # noqa: BLE001 (the type depends on the HTTP client of huggingface_hub)
        files = f"If you have the files: spahgc.encoders.load({name!r}, weights=<file or folder>)."
        again = (
            f"Try again later, or on a machine with a network run `hf download {repository}`, and copy the folder "
            f"models--{repository.replace('/', '--')} of its cache into {constants.HF_HUB_CACHE} here. "
            "encoder='texture' needs no weights."
        )
        page, what = f"https://huggingface.co/{repository}", f"the weights of encoder {name!r}"
        raise hub_error(error, what, page, files=files, again=again) from None
