"""Models of lazyslide-models with their weights: from the hub, from its cache on this machine, or from files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from . import _hub as hub
from ._weights import check_file, find_file, mismatch, read_state, undrawn, unreadable

# Those that are exported programs, and the file that the model asks the hub for.
EXPORTED = {"chief": "CHIEF/CHIEF_patch_encoder_exported.pt2", "ctranspath": "CTransPath/CTransPath_exported.pt2"}
# Those that can be built without the hub: their architecture is in lazyslide-models, and a weight file is enough.
BUILT_IN = {"crisp", "crown", "gigapath-flash", "uni", "uni2"}


def from_hub(name: str, repository: str, build: Callable[[], Any]) -> Any:
    """A model with the weights of the cache or, failing that, of the hub."""
    from huggingface_hub.errors import GatedRepoError

    folder = hub.cached(repository)
    if folder.is_dir():
        try:
            with hub.loading(offline=True):
                return _quietly(build)
        except ImportError:
            raise
        except OSError:
            pass  # the cache holds a part of it
        except Exception as error:
            raise ValueError(
                f"The weights of encoder {name!r} in {folder} cannot be loaded ({type(error).__name__}: "
                f"{str(error).strip()[:200]}). Delete that folder; they are then downloaded again."
            ) from error
    hub.check_access(name, repository)
    try:
        with hub.loading():
            return _quietly(build)
    except GatedRepoError:  # the hub knows the repository by another name than its page
        raise hub.no_access(name, repository) from None


def from_files(name: str, repository: str, model: Any, weights: Path) -> Any:
    """A model with the weights of a file, or of a folder as ``hf download`` leaves it."""
    from lazyslide_models import TimmModel

    file = find_file(weights, model=name)
    check_file(file, model=name)
    folder = file.parent if (file.parent / "config.json").is_file() else None
    if name in BUILT_IN and file.suffix != ".safetensors":
        return fitting(file, name, lambda: model(model_path=str(file)), draw=False)
    if issubclass(model, TimmModel):
        if folder is None:
            raise FileNotFoundError(
                f"{file} has no config.json beside it, which says what network encoder {name!r} is. Run `hf download "
                f"{repository} --local-dir <folder>` on a machine with a network and pass that folder as weights."
            )
        return fitting(file, name, lambda: _timm_from_folder(name, model, folder, file), draw=False)
    files = {EXPORTED.get(name, file.name): file}
    if weights.is_dir():
        files |= {str(path.relative_to(weights)): path for path in weights.rglob("*") if path.is_file()}
    elif folder is not None:
        files |= {path.name: path for path in folder.iterdir() if path.suffix in {".json", ".txt", ".py", ".model"}}
    with hub.as_cache(repository, files) as cache:
        try:
            built = fitting(file, name, model, cache=cache)
        except OSError as error:
            raise FileNotFoundError(
                f"{weights} does not hold all that encoder {name!r} asks for: {str(error).splitlines()[0][:200]} Run "
                f"`hf download {repository} --local-dir <folder>` on a machine with a network, and pass that folder as "
                "weights."
            ) from error
        _check_complete(built.model, cache, repository, file, name)
    return built


def fitting(file: Path, name: str, build: Callable[[], Any], *, cache: Path | None = None, draw: bool = True) -> Any:
    """What `build` makes of a weight file; an error that says which file and which tensors where it does not fit.

    Where `draw` is false, the weights of a new network are not drawn at random first: for those that fail if the file
    leaves any of them out.
    """
    try:
        with hub.loading(offline=True, cache=cache), nullcontext() if draw else undrawn():
            return _quietly(build)
    except (OSError, ImportError):
        raise
    except RuntimeError as error:
        if "state_dict" in str(error) or "size mismatch" in str(error):
            raise mismatch(file, name, error) from None
        raise unreadable(file, name, error) from error
    except ValueError as error:
        raise error if str(file) in str(error) else unreadable(file, name, error) from error
    except Exception as error:
        raise unreadable(file, name, error) from error


def _quietly(build: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        # Of older versions' outputs, of exported programs' read-only buffers: nothing that a user can act on.
        warnings.simplefilter("ignore")
        return build()


def _timm_from_folder(name: str, model: Any, folder: Path, file: Path) -> Any:
    """A model that asks timm for a network of the hub, made from a folder that holds the same.

    The class takes its place between the model and the base class that it hands the name of the hub to.
    """
    from lazyslide_models import TimmModel, TimmViTModel

    base: Any = TimmViTModel if issubclass(model, TimmViTModel) else TimmModel
    config = json.loads((folder / "config.json").read_text())
    inner = config.get("pretrained_cfg", config)
    # Without a classifier to leave off, timm asks for every weight of the network, and for no other.
    overlay: dict[str, Any] = {"source": "", "classifier": None, "file": str(file)}
    if config.get("num_classes", inner.get("num_classes", 0)):
        state = without_classifier(read_state(file, model=name), inner.get("classifier"))
        overlay |= {"file": None, "state_dict": state}

    class Local(base):
        def __init__(self, name: str, token: Any = None, **kwargs: Any) -> None:
            if not name.startswith(("hf-hub:", "hf_hub:")):
                raise ValueError(
                    f"{model.__name__} is read from what torch.save wrote (.bin, .pth), as it is published."
                )
            kwargs |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
            super().__init__(f"local-dir:{folder}", **kwargs)

    class Found(model, Local):
        pass

    made: Any = Found
    return made()


def without_classifier(state: dict[str, Any], names: Any) -> dict[str, Any]:
    """A state dict without the classifier that an encoder leaves off."""
    heads = {names} if isinstance(names, str) else set(names or ())
    return {key: value for key, value in state.items() if key.rpartition(".")[0] not in heads}


def _check_complete(network: Any, cache: Path, repository: str, file: Path, name: str) -> None:
    """No weight of a transformers model was left as it was drawn: transformers only warns of that.

    Raises
    ------
    ValueError
        If the file does not hold all weights.
    """
    load = getattr(type(network), "from_pretrained", None)
    if load is None:
        return
    with hub.loading(offline=True, cache=cache):
        _, info = _quietly(lambda: load(repository, output_loading_info=True))
    missing = sorted(set(info["missing_keys"]) & set(network.state_dict()))
    if missing:
        listed = "\n".join(["", "Missing key(s): " + ", ".join(f'"{key}"' for key in missing)])
        raise mismatch(file, name, RuntimeError(listed))
