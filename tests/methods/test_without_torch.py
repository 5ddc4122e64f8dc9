"""Methods in a process without torch."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torch_geometric"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())

import numpy as np
from spahgc.methods import Cohort, Run, Slide, get_method

def slide(name, rng):
    arrays = rng.normal(size=(40, 8)), rng.uniform(size=(40, 2)), rng.normal(size=(40, 3)), rng.uniform(size=40)
    return Slide(name, name, *(array.astype(np.float32) for array in arrays))

rng = np.random.default_rng(0)
cohort = Cohort((slide("a", rng), slide("b", rng)), ("x", "y", "z")).standardized()
for name in sys.argv[1:]:
    method = get_method(name).fit(cohort, Run())
    target = slide("t", rng)
    again = get_method(name).restore(method.state(), cohort)
    assert np.array_equal(again.predict(target), method.predict(target))
    assert method.predict(target).shape == (40, 3)
assert "torch" not in sys.modules
"""


def test_linear_methods_kernel_and_knn_need_no_torch() -> None:
    names = ["gene_mean", "cellularity", "coordinates", "knn"]
    names += ["ridge", "context_ridge", "smoothed_ridge", "context_kernel"]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *names], check=True)
