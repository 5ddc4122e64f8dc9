"""Tiles, and weights in the formats and folders in which models are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.fixture
def tiles() -> Any:
    """Maker of tiles with structure, uint8 (n, 3, side, side)."""

    def make(n: int, side: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng(side)
        coarse = rng.integers(0, 256, (n, 3, side // 8 + 1, side // 8 + 1), dtype=np.uint8)
        return np.ascontiguousarray(coarse.repeat(8, axis=2).repeat(8, axis=3)[..., :side, :side])

    return make


@pytest.fixture(scope="session")
def models(torchvision: None) -> Any:
    """The module of encoders with weights, which imports timm and lazyslide-models."""
    from spahgc.encoders import _hub

    return _hub


@pytest.fixture(scope="session")
def lunit_folder(torchvision: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``hf download 1aurent/vit_small_patch16_224.lunit_dino`` leaves it, with random weights (22M)."""
    import timm
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("vit_small_patch16_224.lunit_dino")
    network = timm.create_model("vit_small_patch16_224", num_classes=0)
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_small_patch16_224",
        "num_classes": 0,
        "num_features": 384,
        "pretrained_cfg": {
            **{"num_classes": 0, "input_size": [3, 224, 224], "fixed_input_size": True, "interpolation": "bicubic"},
            **{"crop_pct": 0.9, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "classifier": "head"},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tiny_file(torchvision: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of timm's ``test_vit`` (0.4 million) with their classifier, as ``torch.save`` writes them."""
    import timm
    import torch

    file = tmp_path_factory.mktemp("test_vit") / "pytorch_model.bin"
    torch.save(timm.create_model("test_vit").state_dict(), file)
    return file
