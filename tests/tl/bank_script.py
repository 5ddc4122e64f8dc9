"""What a process with little memory runs in `test_model_bank.py`: opens two models and predicts with them.

Arguments: a folder with the models and the slide, and the bytes that may be taken. What it found goes to standard
output.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from spahgc._slides import Slide
from spahgc.tl import Model

from .limited import limit_memory, status


def main() -> None:
    """Predict under a limit of memory that is not of files."""
    folder, most = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    slide = Slide("T1", "B", **dict(np.load(folder / "slide.npz")))
    # So that nothing is left to import or to set up.
    Model.load(folder / "small").predict([slide], progress=False)
    limit_memory(most)
    found: dict[str, object] = {}
    for name in ("False", "True"):
        before, start = status("RssFile"), time.perf_counter()
        model = Model.load(folder / name)
        found[name] = {"seconds": time.perf_counter() - start, "read": status("RssFile") - before}
        found_values = model.predict([slide], progress=False)
        np.savez(folder / f"{name}.npz", values=found_values.values, support=found_values.support)
    try:
        [np.fromfile(path, np.uint8) for path in (folder / "False" / "reference").iterdir()]
        found["whole"] = "fits"
    except MemoryError:
        found["whole"] = "MemoryError"
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
