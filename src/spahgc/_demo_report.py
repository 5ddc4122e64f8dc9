"""Figures, text table and report of the demonstration."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

import matplotlib.pyplot as plt

from . import _keys as keys
from . import get, pl
from ._disk import replacing
from ._report import Facts, Items, Picture, Section, Table, Text, write_report

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from ._demo_slides import Result

_DPI = 200
_BEST = 10
_SIZE = 1.5
"""Spots of legacy arrays are half as wide as their pitch; drawn larger, a pattern is easier to see."""


def draw(result: Result, folder: Path) -> dict[str, Path]:
    """The figures as PNG files, by name."""
    target, genes = result.target, genes_to_draw(result)
    overlay = target.copy()
    overlay.uns[keys.scores()] = {name: column.to_numpy() for name, column in result.scores.items()}
    axes = {
        "expression": pl.expression(target, genes, size=_SIZE, show=False)[0],
        "gene_scores": pl.gene_scores(overlay, show=False),
        "support": pl.support(target, size=_SIZE, show=False),
        "training": pl.training(result.history, show=False),
    }
    if "trust" in target.uns[keys.PREDICTION]:
        axes["trust"] = pl.trust(target, show=False)
    files = {}
    for name, ax in axes.items():
        files[name] = folder / f"{name}.png"
        figure = cast("Figure", ax.figure)
        with replacing(files[name]) as temporary:
            figure.savefig(temporary, dpi=_DPI, facecolor="white")
        plt.close(figure)
    return files


def genes_to_draw(result: Result) -> list[str]:
    """The genes that were named beforehand and are in the panel; else the first of the panel."""
    panel = list(result.target.obsm[keys.PREDICTION].columns)
    return [gene for gene in result.example.genes if gene in panel] or panel[:3]


def headline(result: Result) -> list[str]:
    """What was predicted from what, and what to keep in mind about it; plain text, a line each."""
    target, params = result.target, result.params
    name = " ".join(params["target_slides"])
    units = target.uns[keys.PREDICTION]["units"]
    n_genes = target.obsm[keys.PREDICTION].shape[1]
    return [
        f"{name}: {target.n_obs} spots, {n_genes} genes chosen on the reference "
        f"{', '.join(params['reference_slides'])}; {units}; mean over genes",
        *remarks(result),
    ]


def remarks(result: Result) -> list[str]:
    """What limits the scores."""
    params = result.params
    name = " ".join(params["target_slides"])
    pairs = zip(params["reference_slides"], params["reference_patients"], strict=True)
    same = [slide for slide, patient in pairs if patient in result.shared_patients]
    found = []
    if result.example.drawn:
        found.append("Drawn slides, not real ones: the scores say nothing about tissue.")
    if same:
        found.append(
            f"Same patient: {name} is of patient {', '.join(result.shared_patients)}, as the reference slides "
            f"{', '.join(same)} are. On another patient's slide expect less."
        )
    else:
        found.append(f"{name} is of a patient that the reference does not have.")
    found.append("One target slide: an interval over slides or patients cannot be given.")
    return found


def text_table(summary: pd.DataFrame) -> str:
    """The scores of the methods as aligned text."""
    columns = [("", [str(method) for method in summary.index])]
    columns += [(str(name), [_cell(str(name), value) for value in summary[name]]) for name in summary]
    widths = [max(len(text) for text in (head, *cells)) for head, cells in columns]
    first, *others = [[head, *cells] for head, cells in columns]
    lines = []
    for i, label in enumerate(first):
        rest = "  ".join(column[i].rjust(width) for column, width in zip(others, widths[1:], strict=True))
        lines.append(f"{label.ljust(widths[0])}  {rest}")
    return "\n".join(lines)


def _cell(column: str, value: float) -> str:
    if value != value:
        return "n/a"
    if column.startswith("genes above"):
        return f"{100 * value:.0f} %"
    return f"{value:+.3f}" if column == "to ridge" else f"{value:.3f}"


def write(result: Result, figures: Mapping[str, Path], path: Path) -> None:
    """The report, one HTML file."""
    example, params = result.example, result.params
    name = " ".join(params["target_slides"])
    genes = ", ".join(f"{gene} ({example.genes.get(gene, 'of the panel')})" for gene in genes_to_draw(result))
    sections = [
        Section(
            "Result",
            [
                Text(_summary_sentence(result)),
                Items(remarks(result), warning=True),
                Table(
                    _formatted(result.summary),
                    f"Scores of {name} over {result.target.obsm[keys.PREDICTION].shape[1]} genes"
                    f"{' (same patient)' if result.shared_patients else ''}: mean over genes of the score over spots. "
                    "RMSE is in the unit of the expression.",
                    strong=["spahgc"],
                ),
                Text(
                    "A constant has no correlation, so the gene mean has none (n/a). The last row is an oracle: it is "
                    "told the measured depth of each spot, which no method is, and knows nothing about genes."
                ),
            ],
        ),
        Section(
            "Predicted and measured",
            [
                Picture(
                    figures["expression"],
                    f"{genes}: measured, predicted from H&E alone, and the difference, on {name}. The genes were named "
                    "before the prediction. r is the Pearson correlation over spots. A prediction holds no sampling "
                    "noise and varies less than a measurement does; both are on one colour scale. Where the difference "
                    "has one colour all over, the level of the gene on this slide is off, whatever its pattern is. "
                    f"Spots are drawn {_SIZE:g} times as wide as they are.",
                    alt=f"Spots of slide {name} coloured by measured and predicted expression, a row for each gene.",
                )
            ],
        ),
        Section(
            "Scores by gene",
            [
                Picture(
                    figures["gene_scores"],
                    f"Correlation of every gene on {name}, each method's genes sorted by their own scores. Named are "
                    "the best and the worst of spahgc; they are known only after scoring.",
                    alt="Falling curves of Pearson correlation over genes, one for each method.",
                ),
                Table(
                    _best_genes(result.scores),
                    f"Pearson correlation of the {_BEST} genes with the best score of spahgc, sorted after scoring; "
                    "for spahgc also after depth is removed, and beside it the correlation of the gene with log depth.",
                    digits=2,
                ),
            ],
        ),
        *_trust_section(result, figures),
        Section(
            "Where the reference covers the slide",
            [
                Picture(
                    figures["support"],
                    "Support of each spot: the share of reference spots that are at least as far from the other "
                    "reference slides as this spot is, in the image embedding. Near 0 the slide shows what the "
                    "reference does not, and the prediction should not be used. Measured expression plays no part.",
                    alt=f"Spots of slide {name} coloured by support, from 0 to 1.",
                )
            ],
        ),
        Section(
            "Training",
            [
                Picture(
                    figures["training"],
                    "Training of spahgc's networks on the reference slides, mean of those that are averaged; the "
                    "number of epochs is fixed. The correlation is that of the slides trained on. The target slide "
                    "plays no part.",
                    alt="Curves of loss and correlation over epochs.",
                )
            ],
        ),
        Section("What the numbers mean", [Text(_MEANING)]),
        Section("How it was made", [Facts(_facts(result))]),
        Section("Files", [Items(_FILES)]),
    ]
    write_report(
        path,
        title=f"spahgc: expression of {name} from its H&E",
        subtitle=f"{example.name}. {'Drawn slides, not real ones. ' if example.drawn else ''}"
        f"Research software, not for diagnosis.",
        sections=sections,
    )


def _trust_section(result: Result, figures: Mapping[str, Path]) -> list[Section]:
    """Which genes to trust; nothing where the reference was not cross-validated."""
    if "trust" not in figures:
        return []
    trust = get.trust(result.target)
    columns = {"expected_pearson": "expected Pearson", "low": "low", "high": "high", "verdict": "verdict"}
    share = 100 * trust.attrs["level"]
    return [
        Section(
            "Genes to trust",
            [
                Picture(
                    figures["trust"],
                    "What cross-validation on the reference leads to expect of each gene, known before the target was "
                    f"scored, with the interval that the next slide's correlation is in with {share:g} %.",
                    alt="Falling curve of expected Pearson correlation over genes with intervals, coloured by verdict.",
                ),
                Table(
                    trust.head(_BEST)[list(columns)].rename(columns=columns),
                    f"The {_BEST} genes with the highest expected correlation. {trust.attrs['rule']}.",
                    digits=2,
                ),
            ],
        )
    ]


def _summary_sentence(result: Result) -> str:
    best = result.summary["Pearson"].drop(index=result.summary.index[-1])
    ours, ridge = best["spahgc"], best["ridge"]
    share = result.summary.loc["spahgc"].iloc[-1]
    params = result.params
    change = f"{ours - ridge:+.3f} to ridge on the same embeddings".replace("-", "\N{MINUS SIGN}")
    return (
        f"The expression of {result.target.obsm[keys.PREDICTION].shape[1]} genes in {result.target.n_obs} spots of "
        f"{' '.join(params['target_slides'])} was predicted from its H&E image, by training on "
        f"{len(params['reference_slides'])} slides that have both. The prediction was made from a table without genes; "
        f"what was measured on the slide was joined for the scores only. The mean correlation over genes is {ours:.2f} "
        f"({change}), and {100 * share:.0f} % of the genes are above 0.3."
    )


def _formatted(summary: pd.DataFrame) -> pd.DataFrame:
    """Numbers as they are printed; what is not defined stays None, which the report prints as n/a."""
    import pandas as pd

    columns = {
        str(name): [
            None if value != value else _cell(str(name), value).replace("-", "\N{MINUS SIGN}")
            for value in summary[name]
        ]
        for name in summary
    }
    return pd.DataFrame(columns, index=pd.Index(summary.index, name="method"), dtype=object)


def _best_genes(scores: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    pearson = scores[scores["metric"] == "pearson"].pivot(index="gene", columns="method", values="value")
    ours = scores[scores["method"] == "spahgc"].pivot(index="gene", columns="metric", values="value")
    columns = {method: pearson[method] for method in ("spahgc", "context_ridge", "ridge", "knn")}
    columns |= {"spahgc, depth removed": ours["pearson_depth_removed"], "log depth": ours["depth_only"]}
    return pd.DataFrame(columns).nlargest(_BEST, "spahgc")


def _facts(result: Result) -> dict[str, object]:
    params, record = result.params, result.target.uns[keys.PREDICTION]
    slides = [
        f"{slide} (patient {patient})"
        for slide, patient in zip(params["reference_slides"], params["reference_patients"], strict=True)
    ]
    encoder = record["encoder"]
    fields = ", ".join(f"{encoder['tile_um'] * field:.0f}" for field in encoder["fields_of_view"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "Slides": f"{result.example.name}: {result.example.origin}",
        "Reference": slides,
        "Target": params["target_slides"],
        "Embedding": f"{encoder['encoder']}, tiles of {fields} um, standardised per slide",
        "Panel": f"{len(record['genes'])} genes with the best mean dispersion rank over the reference slides, found in "
        "more than 5 % of their spots",
        "Unit": record["units"],
        "Held out while tuning": f"one {params['split_by']} of the reference at a time",
        "Seed": result.seed,
        "Model": record["model"],
        "Seconds": [f"{name} {seconds:.1f}" for name, seconds in result.seconds.items()],
        "Machine": f"{platform.machine()}, {cores} cores, Python {platform.python_version()}",
        "Versions": [
            f"{name} {version(name)}" for name in ("spahgc", "torch", "torch-geometric", "anndata", "squidpy")
        ],
    }


_PACKAGES = ("spahgc", "torch", "torch-geometric", "anndata", "spatialdata")
_MEANING = """
The score is the Pearson correlation of predicted and measured expression over the spots of the slide, gene by gene: it
asks whether the pattern is right. Expression is counts per 10,000, logged, because on raw counts a predictor that knows
only how many molecules each spot gave looks skilled, while knowing nothing about any gene.

Ridge regression on the same embeddings is the control to beat; context ridge sees the surroundings of a spot as well,
kNN copies the most similar reference spots, and the gene mean says the same everywhere. A network earns its place only
by its difference to these.

"Depth removed" is the correlation after each spot's depth is regressed out of both sides: what is left cannot come from
depth.

A prediction is an expectation from what the image shows, and no measurement. Genes whose score is low here should not
be used, and a good score on one slide does not carry over to another tissue, stain or scanner.
"""

_FILES = [
    "predictions.h5ad: AnnData for scanpy and squidpy. X is the prediction of spahgc, layers are those of the controls "
    "and what was measured, obs has the support of each spot, var the scores of each gene.",
    "scores.csv: every score of every gene and method.",
    "model/: the trained model, for spahgc.tl.Model.load or spahgc predict. It holds the reference's embeddings and "
    "expression.",
    "figures/: the pictures of this page.",
    "demo.json: scores and seconds, for programs.",
]
