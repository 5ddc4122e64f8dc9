"""Weight files: what is read from them, which weights a network holds, and what to say when a file is the wrong one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SUFFIXES = (".bin", ".ckpt", ".pt", ".pt2", ".pth", ".safetensors")
# What a folder from the Hugging Face hub calls its weights, the first that is there is taken.
NAMES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


def find_file(path: Path, *, model: str) -> Path:
    """The weight file that a path names: itself, or the one in a folder as ``hf download`` leaves it.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or none in the folder.
    ValueError
        If a folder holds several and none has one of the usual names.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"No weight file {path} for encoder {model!r}.")
    usual = [path / name for name in NAMES if (path / name).is_file()]
    found = usual[:1] or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not found:
        raise FileNotFoundError(
            f"The folder {path} holds no weights for encoder {model!r}: no file ends in {', '.join(SUFFIXES)}."
        )
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"The folder {path} holds several weight files: {names}. Pass the one for {model!r}.")
    return found[0]


def check_file(path: Path, *, model: str) -> None:
    """A file that is no weight file at all is told by its first bytes.

    Raises
    ------
    ValueError
        If it is empty, a web page, a pointer of Git LFS or another text.
    """
    with path.open("rb") as file:
        head = file.read(512)
    what = None
    if not head:
        what = "is empty"
    elif head.lstrip()[:1] == b"<":
        what = "is a web page (HTML or XML), saved in place of the weights"
    elif head.startswith(b"version https://git-lfs"):
        what = "is a pointer of Git LFS, not the file it points to: run `git lfs pull`"
    elif head.isascii() and head.decode("ascii").isprintable():
        what = f"is a text that begins with {head[:40].decode('ascii')!r}"
    if what:
        raise ValueError(f"{path} {what}; the weights of encoder {model!r} are expected. Download them again.")


def read_state(path: Path, *, model: str) -> dict[str, torch.Tensor]:
    """Tensors of a weight file by name: safetensors, or what ``torch.save`` wrote; never any code that it brings along.

    Raises
    ------
    ValueError
        If it cannot be read, or holds something else than tensors.
    """
    import torch
    from timm.models import load_state_dict

    check_file(path, model=model)
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:
        raise unreadable(path, model, error) from error
    odd = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if odd or not state:
        raise ValueError(
            f"{path} holds no state dict of encoder {model!r}"
            + (f": {', '.join(odd[:3])} are no tensors." if odd else ": it is empty.")
        )
    return state


def unreadable(path: Path, model: str, error: Exception) -> ValueError:
    """The error for a weight file that its reader gave up on."""
    text = str(error)
    if "weights_only" in text or "Weights only" in text:
        why = "it holds other objects than tensors, and those could run code when they are loaded. It was not loaded"
    else:
        why = f"{type(error).__name__}: {text.strip().splitlines()[0][:200] if text.strip() else 'no message'}"
    return ValueError(
        f"{path} ({path.stat().st_size} bytes) cannot be read as the weights of encoder {model!r}; {why}. "
        "If it was cut short or damaged, download it again."
    )


def mismatch(path: Path, model: str, error: Exception, *, shown: int = 3) -> ValueError:
    """The error for weights that do not fit a network, from what torch says about it (one line for every tensor)."""
    lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
    parts = []
    for kind, text in (("missing", "Missing key(s)"), ("not expected", "Unexpected key(s)")):
        names = [name for line in lines if line.startswith(text) for name in re.findall(r'"([^"]+)"', line)]
        if names:
            parts.append(f"{kind} tensors ({len(names)}): {_first(names, shown)}")
    sizes = [
        f"{name} is ({given}) in the file, ({wanted}) in the model"
        for name, given, wanted in re.findall(
            r"size mismatch for (\S+): .*?torch\.Size\(\[([\d, ]*)\]\).*?torch\.Size\(\[([\d, ]*)\]\)", "\n".join(lines)
        )
    ]
    if sizes:
        parts.append(f"tensors of another shape ({len(sizes)}): {_first(sizes, shown)}")
    detail = "; ".join(parts) or str(error).strip().splitlines()[0][:300]
    return ValueError(f"{path} does not hold the weights of encoder {model!r}: {detail}. Is it another model's file?")


def _first(items: list[str], shown: int) -> str:
    return ", ".join(items[:shown]) + (", ..." if len(items) > shown else "")


@contextmanager
def undrawn() -> Iterator[None]:
    """Within this, new networks keep what is in their memory in place of random weights, whose drawing takes long.

    Only for networks whose weights are all loaded afterwards.
    """
    from torch.overrides import TorchFunctionMode

    class Undrawn(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name, module = (getattr(func, key, "") for key in ("__name__", "__module__"))
            if name in {"erfinv_", "normal_", "uniform_"} or module == "torch.nn.init":
                return (args or tuple(kwargs.values()))[0]
            return func(*args, **(kwargs or {}))

    with Undrawn():
        yield


def state_sha256(network: Any) -> str:
    """Fingerprint of the weights in a network: of its floating tensors, whatever they are called and in any order.

    Names are left out because they change with the versions of timm and transformers while the weights do not.
    """

    def digest(tensor: torch.Tensor) -> bytes:
        import torch

        flat = tensor.detach().cpu().contiguous().reshape(-1)
        header = f"{tuple(tensor.shape)} {tensor.dtype}".encode()
        return hashlib.sha256(header + hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()).digest()

    tensors = [value for value in network.state_dict().values() if value.is_floating_point()]
    with ThreadPoolExecutor() as pool:
        return hashlib.sha256(b"".join(sorted(pool.map(digest, tensors)))).hexdigest()
