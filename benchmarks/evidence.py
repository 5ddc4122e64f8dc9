"""Evidence on real slides: does its agreement with a prediction tell which spots are predicted well?

python benchmarks/evidence.py           every case with two reference slides or more; a few minutes
python benchmarks/evidence.py --fresh   forget results of an earlier run

Each case is held out and predicted as in accuracy.py (texture embeddings, depth-normalized, one seed), and the
prediction explained. A spot's score is the Pearson correlation over genes of predicted and measured expression, each
relative to the mean and spread of the gene over the slide's spots; nothing but this score reads what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from _common import RESULTS, machine, write_json  # noqa: E402
from _data import TASKS, case, split, table  # noqa: E402
from _runs import PANEL  # noqa: E402
from _tables import evidence_table  # noqa: E402

UNIT, EMBEDDING = "log1p", "image_texture"
CASES = tuple(task.name for task in TASKS if len(task.references) > 1)
PROTOCOL = {
    "data": "her2st, mouse olfactory bulb ST, mouse colon Visium: the cases of accuracy.py with two reference slides",
    "embedding": "texture, standardised per slide",
    "panel": f"{PANEL} genes, chosen on the reference slides",
    "unit": UNIT,
    "looked at while this was designed": "C3, mob_02 and colon q1",
}


def main() -> None:
    """Run what is missing, then print the table."""
    from joblib import Parallel, delayed

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--fresh", action="store_true", help="forget results of an earlier run")
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1 takes all cores")
    parser.add_argument("--out", type=Path, default=RESULTS / "evidence.json")
    arguments = parser.parse_args()
    done = {} if arguments.fresh or not arguments.out.is_file() else json.loads(arguments.out.read_text())["results"]
    missing = [name for name in CASES if name not in done]
    for dataset in {case(name).dataset for name in missing}:
        table(dataset)  # made once, before there are several processes
    runs = Parallel(n_jobs=arguments.jobs, return_as="generator_unordered")(delayed(run)(name) for name in missing)
    for name, result in runs:
        done[name] = result
        content = {"protocol": PROTOCOL, "machine": machine(), "results": {n: done[n] for n in CASES if n in done}}
        write_json(arguments.out, content)
    print(evidence_table({name: done[name] for name in CASES}))


def run(name: str) -> tuple[str, dict[str, Any]]:
    """Hold out, predict, explain; scores of the spots beside what was said of them."""
    import numpy as np
    import torch
    from scipy.stats import spearmanr

    import spahgc
    from spahgc._tables._cohorts import measured_expression

    torch.set_num_threads(1)
    spahgc.settings.progress = False
    reference, target = split(case(name))
    blind = target[:, :0].copy()
    model = spahgc.tl.train(
        reference,
        panel=PANEL,
        normalize=UNIT,
        use_rep=EMBEDDING,
        library_key="region",
        split_by="patient" if case(name).kind == "new patient" else "slide",
        rng=0,
    )
    spahgc.tl.predict(model, blind, library_key="region")
    spahgc.tl.explain(model, blind, library_key="region", n_references=10**6)
    genes = list(model.genes)
    measured, _, _ = measured_expression(target, genes, UNIT, layer=None)
    predicted = blind.obsm["spahgc"].to_numpy()
    behind = spahgc.get.evidence(blind, adata_ref=reference, library_key="region")
    of_reference, _, _ = measured_expression(reference, genes, UNIT, layer=None)
    rows = reference.obs_names.get_indexer(behind["reference"])
    mean = np.zeros_like(predicted, dtype=np.float64)
    np.add.at(
        mean, blind.obs_names.get_indexer(behind["spot"]), behind["weight"].to_numpy()[:, None] * of_reference[rows]
    )
    score = spahgc.metrics.pearson(_relative(measured).T, _relative(predicted).T)
    agreement, support = (blind.obs[f"spahgc_{what}"].to_numpy() for what in ("agreement", "support"))
    quarters = np.array_split(np.argsort(agreement), 4)
    found = {
        "agreement": spearmanr(agreement, score, nan_policy="omit")[0],
        "support": spearmanr(support, score, nan_policy="omit")[0],
        "mean": np.nanmean(score),
        "least": np.nanmean(score[quarters[0]]),
        "most": np.nanmean(score[quarters[-1]]),
        "genes": np.nanmean(spahgc.metrics.pearson(measured, predicted)),
        "genes_evidence": np.nanmean(spahgc.metrics.pearson(measured, mean)),
    }
    return name, {key: round(float(value), 4) for key, value in found.items()}


def _relative(values: Any) -> Any:
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / (spread + (spread == 0))


if __name__ == "__main__":
    main()
