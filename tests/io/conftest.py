"""A small slide: 5 x 4 spots at a pitch of 60 pixels, 6 genes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

PITCH = 60


@pytest.fixture
def slide() -> dict[str, Any]:
    """Arguments of `read_st` for a slide whose image is wider (500) than high (400)."""
    rng = np.random.default_rng(0)
    x, y = (part.ravel() for part in np.meshgrid(np.arange(1, 6), np.arange(1, 5)))
    spots = pd.DataFrame({"x": x, "y": y, "pixel_x": 20.0 + PITCH * x + 100, "pixel_y": 20.0 + PITCH * y})
    spots["new_x"] = (x + rng.uniform(-0.1, 0.1, len(x))).round(3)
    spots["new_y"] = (y + rng.uniform(-0.1, 0.1, len(y))).round(3)
    counts = pd.DataFrame(
        rng.poisson(3, (20, 6)),
        index=[f"{a}x{b}" for a, b in zip(x, y, strict=True)],
        columns=[f"G{i}" for i in range(6)],
    )
    image = rng.integers(0, 256, (400, 500, 3), dtype=np.uint8)
    return {"counts": counts, "spots": spots, "image": image, "slide": "A1"}
