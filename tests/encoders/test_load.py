"""Weight files and folders in the formats in which models are published, read by the code that reads the real ones."""

from __future__ import annotations

import io
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spahgc.encoders import load
from spahgc.encoders._network import state_sha256
from spahgc.encoders._table import resolve

pytestmark = pytest.mark.usefixtures("torchvision")


def images_of(given: Any) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(tile.transpose(1, 2, 0)) for tile in given]


def test_uni_at_its_full_size(tmp_path: Path, tiles: Any) -> None:
    """A ViT-L of 303 million weights from a ``pytorch_model.bin`` of 1.2 GB, as UNI is published."""
    import timm

    with torch.device("meta"):
        network = timm.create_model(
            "vit_large_patch16_224", img_size=224, init_values=1e-5, num_classes=0, dynamic_img_size=True
        )
    block = torch.randn(4_200_000, generator=torch.Generator().manual_seed(0)) * 0.02
    state = {
        name: block[: tensor.numel()].reshape(tensor.shape).clone() for name, tensor in network.state_dict().items()
    }
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file)
    assert file.stat().st_size > 1.2e9
    encoder = load("uni", weights=file)
    file.unlink()

    assert (encoder.name, encoder.tile_px, encoder.microns_per_pixel) == ("uni", 224, 0.5)
    recipe = dict(encoder.recipe)
    assert recipe == {
        "source": "lazyslide-models",
        "model": "uni",
        "repository": "MahmoodLab/uni",
        "transform": "ToDtype(scale=True); Resize(size=[224, 224], interpolation=InterpolationMode.BILINEAR, "
        "antialias=True); CenterCrop(size=(224, 224)); "
        "Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225], inplace=False)",
        "pooling": "lazyslide_models.base.TimmModel.encode_image, timm global_pool=token",
        "weights_sha256": recipe["weights_sha256"],
        "width": 1024,
        "tile_px": 224,
        "versions": {"lazyslide-models": version("lazyslide-models")},
    }
    # The weights in the network are those of the file, every one of them.
    held = encoder.encode.keywords["forward"].__self__.model.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(held[name], tensor) for name, tensor in state.items())
    out = encoder.encode(tiles(1, 224))
    assert out.shape == (1, 1024)
    assert out.std() > 0


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_folder_from_the_hub(lunit_folder: Path, tiles: Any, what: str) -> None:
    """Where the hub's config.json says what the network is; numbers as lazyslide-models gives them for an image."""
    encoder = load("lunit-dino-s16", weights=lunit_folder if what == "folder" else lunit_folder / "model.safetensors")
    given = tiles(2, 224)
    model = encoder.encode.keywords["forward"].__self__  # type: ignore[attr-defined]
    expected = model.encode_image(torch.stack([model.get_transform()(image) for image in images_of(given)]))
    np.testing.assert_allclose(encoder.encode(given), expected.numpy(), atol=1e-5)
    assert (
        "mean=[0.70322989, 0.53606487, 0.66096631]" in encoder.recipe["transform"]
    )  # Lunit's, not those of config.json
    from safetensors.torch import load_file

    held = SimpleNamespace(state_dict=lambda: load_file(lunit_folder / "model.safetensors"))
    assert encoder.recipe["weights_sha256"] == state_sha256(held)


def test_a_network_of_timm(tiny_file: Path, tiles: Any) -> None:
    """By timm's name; the classifier in the file is left off, and every weight of the rest has to be there."""
    encoder = load("timm:test_vit.r160_in1k", weights=tiny_file)
    assert (encoder.name, encoder.recipe["source"], encoder.recipe["width"]) == ("test_vit.r160_in1k", "timm", 64)
    assert encoder.recipe["repository"] == "timm/test_vit.r160_in1k"
    assert json.loads(json.dumps(encoder.recipe)) == encoder.recipe
    import timm

    module = timm.create_model("test_vit", num_classes=0)
    state = torch.load(tiny_file, weights_only=True)
    module.load_state_dict({name: value for name, value in state.items() if not name.startswith("head.")})
    given = tiles(2, 168)
    assert encoder.tile_px == 168
    np.testing.assert_allclose(encoder.encode(given), resolve(module).encode(given), atol=1e-5)
    assert encoder.recipe["weights_sha256"] == resolve(module).recipe["weights_sha256"]


def test_another_width_than_the_card_says(lunit_folder: Path, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.registry()["lunit-dino-s16"], "encode_dim", 512)
    with pytest.raises(ValueError, match=r"'lunit-dino-s16' .* floats \(1, 512\), but returned shape \(1, 384\)"):
        load("lunit-dino-s16", weights=lunit_folder)


class Explosive:
    """Object that runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def wrong(tiny_file: Path) -> dict[str, bytes]:
    """Files that are not the weights of timm's ``test_vit``."""
    import timm

    state, content = torch.load(tiny_file, weights_only=True), tiny_file.read_bytes()
    return {
        "other model": saved(timm.create_model("test_resnet").state_dict()),
        "other size": saved({**state, "blocks.0.mlp.fc1.weight": torch.zeros(8, 64)}),
        "tensor missing": saved({name: value for name, value in state.items() if name != "norm.weight"}),
        "truncated": content[:-2000],
        "damaged": content[:100] + bytes(300) + content[400:],
        "web page": b"\n<!doctype html>\n<html><body>Log in to download</body></html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n",
        "empty": b"",
        "no tensors": saved({"epoch": 3, "name": "x"}),
        "code": saved({"weights": Explosive()}),
    }


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("other model", r"not hold the weights of encoder 'test_vit': .*Missing key.*: \"cls_token\", \"pos_embed\""),
        ("other size", r"size mismatch for blocks.0.mlp.fc1.weight: .*\[8, 64\].*model is torch.Size\(\[192, 64\]\)"),
        ("tensor missing", r"Missing key.*: \"norm.weight\". If .* belongs to another model, pass the right file"),
        ("truncated", r"\(\d+ bytes\) does not hold the weights of encoder 'test_vit'.*download it again"),
        ("damaged", "'test_vit': it is no weight file .damaged.*download it again"),
        ("web page", "does not hold the weights of encoder 'test_vit': .*, a web page .*download it again"),
        ("pointer", "or a pointer of Git LFS.*download it again"),
        ("empty", r"\(0 bytes\) does not hold the weights of encoder 'test_vit': .*download it again"),
        ("no tensors", "'test_vit': it is not a state dict: epoch, name in place of tensors"),
        ("code", "contains code that would run when it is loaded. It was not loaded"),
    ],
)
def test_wrong_files(
    what: str, message: str, wrong: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.bin"
    file.write_bytes(wrong[what])
    with pytest.raises(ValueError, match=message) as raised:
        load("timm:test_vit", weights=file)
    assert str(raised.value).startswith(str(file))
    assert not Path("exploded").exists()


def test_wrong_files_of_other_readers(
    wrong: dict[str, bytes], tmp_path: Path, lunit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code is refused first: also if a package is missing."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(wrong["code"])
    for name in ("gigapath-flash", "crown", "conch"):
        with pytest.raises(ValueError, match=f"does not hold the weights of encoder '{name}'.*It was not loaded"):
            load(name, weights=file)
        assert not Path("exploded").exists()
    file.write_bytes(wrong["other model"])
    with pytest.raises(ValueError, match="weights of encoder 'gigapath-flash': .*Missing key.*: .cls_token"):
        load("gigapath-flash", weights=file)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(lunit_folder / name, tmp_path)
    short = tmp_path / "model.safetensors"
    short.write_bytes(short.read_bytes()[:-500])
    with pytest.raises(ValueError, match="model.safetensors .* does not hold the weights of encoder 'lunit-dino-s16'"):
        load("lunit-dino-s16", weights=short)


def test_weights_that_give_nan(tiny_file: Path, tmp_path: Path) -> None:
    """Found on loading, and not after an hour."""
    state = torch.load(tiny_file, weights_only=True)
    state["patch_embed.proj.bias"][0] = float("nan")
    torch.save(state, tmp_path / "a.bin")
    with pytest.raises(ValueError, match="Encoder 'test_vit' .* 1 of its rows have NaN"):
        load("timm:test_vit", weights=tmp_path / "a.bin")


def test_files_that_are_not_there(tmp_path: Path, tiny_file: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a.bin is no file or folder with a file .bin, .* for encoder 'uni'"):
        load("uni", weights=tmp_path / "a.bin")
    with pytest.raises(FileNotFoundError, match="is no file or folder with a file .bin, .* for encoder 'uni'"):
        load("uni", weights=tmp_path)
    for name in ("a.bin", "b.bin"):
        shutil.copy(tiny_file, tmp_path / name)
    with pytest.raises(ValueError, match="several weight files: a.bin, b.bin. Pass the one of 'uni'"):
        load("uni", weights=tmp_path)
    with pytest.raises(FileNotFoundError, match="config.json.*'virchow2'.*hf download paige-ai/Virchow2 --local-dir"):
        load("virchow2", weights=tiny_file)
    with pytest.raises(ImportError, match=r"'conch' requires conch \(github.com/mahmoodlab/CONCH\)"):
        load("conch", weights=tiny_file)
    for name, folder in {"keep": "Astaxanthin--KEEP", "phikonv2": "owkin--phikon-v2"}.items():
        with pytest.raises(ValueError, match=f"'{name}' cannot be loaded from .*models--{folder}.*HF_HUB_OFFLINE"):
            load(name, weights=tiny_file)
