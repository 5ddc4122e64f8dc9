"""``import spahgc`` is fast and loads nothing heavy; every public name can be had."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import spahgc

HEAVY = {
    *("anndata", "matplotlib", "pandas", "scanpy", "seaborn", "skimage", "sklearn", "spatialdata", "squidpy", "torch"),
    "torch_geometric",
}


def loaded_by(statement: str) -> tuple[set[str], float]:
    """Top-level modules that a fresh interpreter has after `statement`, and the processor seconds it took."""
    code = (
        "import json, sys, time\n"
        "start = time.process_time()\n"
        f"{statement}\n"
        "took = time.process_time() - start\n"
        "print(json.dumps([sorted({name.partition('.')[0] for name in sys.modules}), took]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, took = json.loads(done.stdout)
    return set(modules), took


def test_import_loads_nothing_heavy_and_is_fast() -> None:
    modules, took = loaded_by("import spahgc")
    assert "spahgc" in modules
    assert not modules & HEAVY
    assert took < 0.5
    assert loaded_by("import pandas")[0] & HEAVY == {"pandas"}


def test_dir_lists_the_public_names() -> None:
    assert set(spahgc.__all__) < set(dir(spahgc))
    assert spahgc.__all__ == sorted(spahgc.__all__)


@pytest.mark.parametrize("name", spahgc.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(spahgc, name) is not None


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known() -> None:
    with pytest.raises(AttributeError, match=r"'nonsense'.*Available: .*pp"):
        _ = spahgc.nonsense


def test_version_is_that_of_the_metadata() -> None:
    from importlib.metadata import version

    assert spahgc.__version__ == version("spahgc")


def test_the_command_is_installed() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="spahgc")
    assert script.value == "spahgc.cli:main"


def test_the_fast_preset_does_without_torch() -> None:
    code = (
        "import sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'torch': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refused())\n"
        "import spahgc\n"
        "reference, target = spahgc.datasets.synthetic_tables()\n"
        "spahgc.tl.predict(reference, target, preset='fast', panel=5, progress=False)\n"
        "print(target.obsm['spahgc'].shape[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "5"
