"""Pages that are made from the package and the repository before Sphinx looks for its sources.

- ``api/generated/{subpackage}.md``: the names in the subpackage's ``__all__``, by kind.
- ``tutorials/``: the notebooks of ``/tutorials``, as they were committed.
- ``accuracy.md``, ``speed.md``: the committed results of the scripts in ``benchmarks``.

All of these are in .gitignore; a file is rewritten only if it changed, so that a second build stays fast.
"""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speed_page import speed_page

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config

BENCHMARKS = ("accuracy", "ablation", "trust", "evidence", "protocols")
ACCURACY = {
    "intro": "Generated from the committed output of the scripts in `benchmarks/`, which print these tables. Each case "
    "holds out a slide, a tissue block or a patient; its expression is used for scoring only. The default was designed "
    "with the scores of C3, C5, mob_02 and colon q1 in view, so their scores favor it. The other cases were not used, "
    "with one exception: a first version scored below ridge on B4 and on C from B4. Linear methods were then added for "
    "new patients, with a share chosen on C3 and C5 predicted from B4 and on mob_02 predicted from mob_11. Two later "
    "changes (components of the expression at the reference nodes, no kernel for new patients) were run on all cases "
    "and reverted because scores did not improve. The number of components that linear methods "
    "fit, ten, comes from a comparison of 5 to 20 on twenty cases, these among them. Means weight cases equally. "
    "Intervals are for the paired difference to ridge, from resampling cases. The cases come from five donors, so "
    "intervals say little about other tissues. `low_rank_ridge` is ridge on ten components of the expression, and "
    "`fast` the mean of it and of context ridge on these components: stronger controls than plain ridge. "
    "Methods with a random seed are the mean of three (the paper's preset: one). The published methods are compact "
    "forms on the same embeddings; the documentation of each states what it leaves out. For new patients, with one or "
    "two patients to learn from, no method does well, and spahgc is below ridge on B4.",
    "log1p": "The default unit. *Depth oracle*: score of a predictor that knows only the total count of each spot.",
    "log10": "For comparison with published scores. With depth left in, a predictor that knows only the total count of "
    "each spot scores as in the last row.",
    "seconds": "Median seconds to train on the reference of a case and predict it, on one thread of a shared machine.",
    "ablation": "`benchmarks/ablation.py`: the default with one network that uses tissue context, and variants with "
    "one part changed; texture embeddings, depth-normalized, all cases with at least two reference slides. Intervals "
    "are for the paired difference, from resampling cases.",
    "trust": "`benchmarks/trust.py`: genes are ranked by the expected correlation from cross-validation on the "
    "reference slides, before the held-out slide is scored. *Spearman* compares expected and realized Pearson over "
    "genes; *top 50* is the realized mean of the 50 genes ranked first, *oracle 50* that of the best 50 in hindsight; "
    "*coverage* is the fraction of genes inside their 90 % interval. For a new patient (B4) the expectation is wrong, "
    "so `tl.predict` then gives no interval and calls no gene better than weak.",
    "evidence": "`benchmarks/evidence.py`: held-out cases with at least two reference slides, predicted and explained "
    "by the default (`tl.explain`; texture embeddings, depth-normalized, one seed). The score of a spot is the Pearson "
    "correlation over genes between predicted and measured expression, each standardized per gene within the slide. "
    "Shown are its mean over all *spots* and over the quarters with the least and the most agreement between "
    "prediction and evidence. *Spearman* correlates the score with agreement and with support over spots. *Genes* is "
    "the usual score (mean Pearson per gene) of the prediction, and of the weighted mean of the expression measured in "
    "the attended reference spots. B4 is a new patient, and mob_11 another mouse than its references. C3, mob_02 and "
    "colon q1 were used to design the agreement.",
    "protocols": "`benchmarks/protocols.py`: from the honest protocol to that of the paper, one change at a time.",
}
SUBPACKAGES = ["io", "datasets", "pp", "tl", "get", "pl", "metrics", "encoders", "methods", "nn"]


def kind(obj: Any) -> str:
    """Heading under which a public name is listed."""
    if inspect.isclass(obj):
        return "Classes"
    return "Functions" if callable(obj) else "Data"


def api_page(subpackage: str) -> str:
    """Page of one subpackage: its docstring, then tables of its public names."""
    full_name = f"spahgc.{subpackage}"
    module = importlib.import_module(full_name)
    lines = [f"# `{full_name}`", "", inspect.cleandoc(module.__doc__ or ""), ""]
    groups: dict[str, list[str]] = {"Functions": [], "Classes": [], "Data": []}
    for name in getattr(module, "__all__", ()):
        groups[kind(getattr(module, name))].append(name)
    for heading, names in groups.items():
        if not names:
            continue
        if heading == "Data":  # autodoc would show the docstring of the value's type
            directives = [data_entry(f"{full_name}.{name}", getattr(module, name)) for name in names]
        else:
            directives = [".. autosummary::", "    :toctree:", "", *(f"    {full_name}.{name}" for name in names)]
        lines += [f"## {heading}", "", "```{eval-rst}", *directives, "```", ""]
    return "\n".join(lines)


def data_entry(full_name: str, value: Any) -> str:
    """Entry of a public name that is no function and no class; of a registry, what it holds."""
    entry = f".. py:data:: {full_name}\n    :type: {type(value).__name__}\n"
    return f"{entry}\n    Holds {', '.join(f'``{key}``' for key in value)}.\n" if isinstance(value, dict) else entry


def accuracy_page(repository: Path) -> str:
    """What the benchmarks found, from their committed JSON."""
    sys.path.insert(0, str(repository / "benchmarks"))
    import _tables as tables

    results = repository / "benchmarks" / "results"
    found = {name: json.loads((results / f"{name}.json").read_text()) for name in BENCHMARKS}
    accuracy = found["accuracy"]
    parts = ["# How good is it, and how we know", ACCURACY["intro"], tables.protocol_table(accuracy)]
    for unit, name in tables.UNIT_NAMES.items():
        parts += [f"## Every method: {name}", ACCURACY[unit]]
        for embedding, title in tables.EMBEDDING_NAMES.items():
            parts += [f"### {title}", tables.accuracy_table(accuracy, unit, embedding)]
            parts += [tables.untouched(accuracy, embedding)] if unit == "log1p" else []
            parts += ["Case by case:", tables.cases_table(accuracy, unit, embedding)]
    parts += ["## Computation time", ACCURACY["seconds"], tables.seconds_table(accuracy)]
    parts += ["## What each part contributes", ACCURACY["ablation"], tables.ablation_table(found["ablation"])]
    parts += ["## Does trust hold?", ACCURACY["trust"], tables.trust_table(found["trust"]["results"])]
    parts += [
        "## Is the evidence informative?",
        ACCURACY["evidence"],
        tables.evidence_table(found["evidence"]["results"]),
    ]
    parts += ["## The same methods under each protocol", ACCURACY["protocols"]]
    parts += [tables.steps_table(found["protocols"]), tables.pairs_table(found["protocols"])]
    return "\n\n".join(parts) + "\n"


def write(path: Path, text: str) -> None:
    """Write a file, if that changes it."""
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make_pages(app: Sphinx, _config: Config) -> None:
    """Write all generated pages."""
    docs = Path(app.srcdir)
    for subpackage in SUBPACKAGES:
        write(docs / "api" / "generated" / f"{subpackage}.md", api_page(subpackage))

    write(docs / "accuracy.md", accuracy_page(docs.parent))
    write(docs / "speed.md", speed_page(docs.parent))

    tutorials = docs / "tutorials"
    tutorials.mkdir(exist_ok=True)
    notebooks = sorted((docs.parent / "tutorials").glob("*.ipynb"))
    for old in set(tutorials.glob("*.ipynb")) - {tutorials / notebook.name for notebook in notebooks}:
        old.unlink()
    for notebook in notebooks:
        copy = tutorials / notebook.name
        if not copy.is_file() or copy.read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, copy)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("config-inited", make_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
