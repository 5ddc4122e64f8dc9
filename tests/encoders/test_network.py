"""Modules of the user's as encoders: what they get, where they run, what is recorded of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spahgc.encoders import _network, load
from spahgc.encoders._network import state_sha256
from spahgc.encoders._table import resolve


class Mean(torch.nn.Module):
    """The mean of each channel, and one weight."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.map = torch.nn.Linear(3, width, bias=False)
        with torch.no_grad():
            self.map.weight.copy_(torch.eye(width, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.map(images.mean(dim=(2, 3)))


def test_a_module_gets_normalized_tiles(tiles: Any) -> None:
    module = Mean().train()
    encoder = resolve(module)
    assert (encoder.name, encoder.tile_px, encoder.fields_of_view) == ("Mean", 224, (1.0,))
    assert (encoder.threads, encoder.precision) == (False, "float32")
    assert not module.training
    given = tiles(3, 224)
    mean, sd = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    out = encoder.encode(given)
    np.testing.assert_allclose(out, (given.mean(axis=(2, 3)) / 255 - mean) / sd, atol=1e-5)
    assert isinstance(out, np.ndarray)
    assert out.dtype == np.float32
    assert encoder.recipe == {
        "source": "torch",
        "model": f"{Mean.__module__}.Mean",
        "transform": "scale to 0..1; normalize mean (0.485, 0.456, 0.406) sd (0.229, 0.224, 0.225)",
        "pooling": "output of the module",
        "weights_sha256": state_sha256(Mean()),
        "width": 3,
        "tile_px": 224,
    }


def test_fingerprint_is_of_the_weights() -> None:
    """Other weights or another shape: another one. Other names, another order or a counter: the same."""
    state = {"a": torch.arange(6.0), "b": torch.ones(2, 3), "steps": torch.tensor(3)}

    def sha256(held: dict[str, torch.Tensor]) -> str:
        return state_sha256(SimpleNamespace(state_dict=lambda: held))

    known = sha256(state)
    assert sha256({"y": state["b"], "x": state["a"], "steps": torch.tensor(9)}) == known
    changed = {"values": {**state, "a": state["a"] + 1e-6}, "shape": {**state, "a": state["a"].reshape(2, 3)}}
    changed["dtype"] = {**state, "a": state["a"].half()}
    assert len({known, *(sha256(other) for other in changed.values())}) == 4


def test_outputs_that_are_no_embedding() -> None:
    class Returns(torch.nn.Module):
        def __init__(self, value: Any) -> None:
            super().__init__()
            self.value = value

        def forward(self, images: torch.Tensor) -> Any:
            return self.value(images)

    with pytest.raises(TypeError, match=r"'Returns' should return a tensor \(1, width\), but returned dict. Wrap it"):
        resolve(Returns(lambda images: {"features": images}))
    with pytest.raises(ValueError, match="NaN or infinite"):
        resolve(Returns(lambda images: images.mean(dim=(2, 3)) * float("nan")))
    with pytest.raises(ValueError, match=r"returned shape \(1, 3, 224, 224\)"):
        resolve(Returns(lambda images: images))
    # And a width that changes between one call and the next.
    encoder = resolve(Returns(lambda images: images.mean(dim=(2, 3))[:, : 4 - min(len(images), 2)]))
    with pytest.raises(ValueError, match=r"should return floats \(2, 3\), but returned shape \(2, 2\)"):
        encoder.encode(np.zeros((2, 3, 224, 224), np.uint8))


def test_mixed_precision(tiles: Any) -> None:
    """bfloat16 is what the network computes in; tiles are normalized in float32, embeddings come back in it."""
    seen = []

    class Watched(Mean):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            out = super().forward(images)
            seen.append((images.dtype, out.dtype))
            return out

    encoder = resolve(Watched(), precision="bfloat16")
    given = tiles(2, 224)
    out = encoder.encode(given)
    assert encoder.precision == "bfloat16"
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    assert out.dtype == np.float32
    exact = resolve(Mean()).encode(given)
    assert 0 < np.abs(out - exact).max() < 0.02 * np.abs(exact).max()
    # The recipe does not depend on it.
    assert encoder.recipe["weights_sha256"] == resolve(Mean()).recipe["weights_sha256"]


def test_precision_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert _network.precision_on(cpu, None) == "float32"
    for supported, expected in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert _network.precision_on(cuda, None) == expected
    assert _network.precision_on(cuda, "float32") == "float32"
    with pytest.raises(ValueError, match="`precision` must be one of 'float32', .*, got 'half'"):
        load("resnet50", precision="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'float16' needs a GPU"):
        resolve(Mean(), precision="float16")
    with pytest.raises(ValueError, match="`device` must be .* got 'gpu'"):
        resolve(Mean(), device="gpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda(tiles: Any) -> None:
    given = tiles(5, 224)
    exact = resolve(Mean(), device="cpu").encode(given)
    encoder = resolve(Mean(), device="cuda")
    assert encoder.precision in {"bfloat16", "float16"}
    np.testing.assert_allclose(encoder.encode(given), exact, atol=0.02 * np.abs(exact).max())
    np.testing.assert_allclose(resolve(Mean(), device="cuda", precision="float32").encode(given), exact, atol=1e-4)


@pytest.mark.parametrize("classes", [0, 7])
def test_a_timm_module_is_evaluated_as_timm_does(torchvision: None, tiles: Any, classes: int) -> None:
    """The same numbers as timm's own transform of an image, whose centre it takes, and its pooled features."""
    import timm
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    module = timm.create_model("test_vit", num_classes=classes)
    encoder = resolve(module)
    config = resolve_model_data_config(module)
    assert (encoder.name, config["input_size"], config["crop_pct"]) == ("test_vit", (3, 160, 160), 0.95)
    assert encoder.tile_px == 168  # of which the centre of 160 is taken
    assert "center crop 160; " in encoder.recipe["transform"]
    transform = create_transform(**config, is_training=False)
    given = tiles(3, 168)
    images = torch.stack([transform(Image.fromarray(tile.transpose(1, 2, 0))) for tile in given])
    with torch.no_grad():
        expected = module.forward_head(module.forward_features(images), pre_logits=True)
    np.testing.assert_allclose(encoder.encode(given), expected.numpy(), atol=1e-5)
    assert encoder.recipe["width"] == 64
    assert encoder.recipe["source"] == "timm"


def test_an_exported_program_is_a_module(tiles: Any) -> None:
    """What ``torch.export.load(...).module()`` returns has no training mode to leave."""
    batch = torch.export.Dim("batch")
    shapes = ({0: batch},)
    program = torch.export.export(Mean().eval(), (torch.zeros(2, 3, 224, 224),), dynamic_shapes=shapes)
    encoder = resolve(program.module())
    given = tiles(3, 224)
    np.testing.assert_allclose(encoder.encode(given), resolve(Mean()).encode(given), atol=1e-6)
    assert encoder.recipe["weights_sha256"] == state_sha256(Mean())
