"""What the transforms of torchvision and transformers do to a tile, as text, and the tile that they are made for."""

from __future__ import annotations

from typing import Any


def numbers(values: Any) -> str:
    """Numbers as text, without the noise of binary fractions."""
    return "(" + ", ".join(f"{float(value):.6g}" for value in values) + ")"


def described(transform: Any) -> tuple[int, str]:
    """Side of the tiles for which a transform of torchvision does not resize, and what it does, as text."""
    side, steps = None, []
    for step in transform.transforms:
        kind = type(step).__name__
        if kind in {"Resize", "CenterCrop"}:
            sides = set(step.size if isinstance(step.size, list | tuple) else [step.size])
            if len(sides) > 1:
                raise ValueError(f"The transform {step} is for images that are not square; tiles are.")
            size = int(sides.pop())
            side = side or size
            how = f" {getattr(step.interpolation, 'value', step.interpolation)}" if kind == "Resize" else ""
            steps.append(f"{'resize' if kind == 'Resize' else 'centre crop'} {size}{how}")
        elif kind == "ToDtype" and step.scale:
            steps.append("scale to 0..1")
        elif kind == "Normalize":
            steps.append(f"normalise mean {numbers(step.mean)} sd {numbers(step.std)}")
        elif kind not in {"ToDtype", "ToImage"}:
            steps.append(str(step))
    return side or 224, "; ".join(steps)


def described_processor(processor: Any) -> tuple[int, str]:
    """The same of an image processor of transformers."""
    from PIL.Image import Resampling

    def side(size: Any) -> int:
        values = dict(size) if size else {}
        return int(values.get("height") or values.get("shortest_edge") or 224)

    steps, resized = [], side(processor.size)
    if processor.do_resize:
        how = processor.resample  # a number of PIL's, or a name of torchvision's
        how = Resampling(how).name.lower() if isinstance(how, int) else how.value
        steps.append(f"resize {resized} {how}")
    if getattr(processor, "do_center_crop", False):
        steps.append(f"centre crop {side(processor.crop_size)}")
    if processor.do_rescale:
        steps.append(f"scale by {processor.rescale_factor:.6g}")
    if processor.do_normalize:
        steps.append(f"normalise mean {numbers(processor.image_mean)} sd {numbers(processor.image_std)}")
    return resized, "; ".join(steps)
