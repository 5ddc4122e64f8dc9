"""Report page: a prediction's figures and tables in one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from .. import _keys as keys
from .. import get
from .._disk import replacing
from ._drawing import MINUS
from ._expression import expression, support
from ._genes import gene_scores
from ._training import training

_DPI = 200
_CSS_DPI = 120  # pixels of the page per inch of a figure: text of 8.5 points is a little smaller than the page's
_BEST = 10
_SIZE = 1.5  # spots of legacy arrays are half as wide as their pitch; patterns are easier to see on larger ones

# Heading and any of text (paragraphs), warnings, picture (caption, alt), table (table_caption), facts and entries.
Section = Mapping[str, Any]


def write_report(
    adata: AnnData,
    path: Path,
    *,
    genes: Mapping[str, str],
    result: Section,
    closing: Sequence[Section] = (),
    history: Mapping[str, Any] | None = None,
    title: str,
    subtitle: str = "",
) -> None:
    """Write the report of an evaluated prediction of a slide, and its figures in the folder ``figures`` beside it."""
    import jinja2

    sections = [result, *_sections(adata, path.parent / "figures", genes, history), *closing]
    # Autoescape: names of slides and genes come from files.
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("spahgc.pl").joinpath("_report.html").read_text(encoding="utf-8"))
    footer = f"Written by spahgc {version('spahgc')} on {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}."
    page = template.render(title=title, subtitle=subtitle, sections=sections, footer=footer)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def html_table(frame: pd.DataFrame, *, digits: int = 3, classes: str | None = None) -> str:
    """Escaped HTML of a table, with the name of its index in the corner; NaN is "n/a"."""
    headed = frame.rename_axis(None).rename_axis(str(frame.index.name), axis="columns")
    with pd.option_context("display.max_colwidth", None):
        return headed.to_html(
            border=0,
            classes=classes,
            escape=True,
            float_format=lambda value: f"{value:.{digits}f}".replace("-", MINUS),
            na_rep="n/a",
        )


def _sections(
    adata: AnnData, folder: Path, genes: Mapping[str, str], history: Mapping[str, Any] | None
) -> list[Section]:
    key = keys.PREDICTION
    name = " ".join(map(str, adata.uns[key][keys.PARAMS]["target_slides"]))
    described = ", ".join(f"{gene} ({meaning})" for gene, meaning in genes.items())
    sections: list[Section] = [
        {
            "heading": "Predicted and measured",
            "picture": _embed(folder / "expression.png", expression(adata, list(genes), size=_SIZE, show=False)[0]),
            "caption": f"{described}: measured, predicted from H&E alone, and the difference, on {name}. The genes "
            "were chosen before the prediction. r is the Pearson correlation over spots. A prediction contains no "
            "sampling noise and varies less than a measurement; both share one color scale. Where the difference has "
            "one color everywhere, the level of the gene on this slide is off, whatever its pattern. Spots are drawn "
            f"at {_SIZE:g} times their width.",
            "alt": f"Spots of slide {name} colored by measured and predicted expression, one row per gene.",
        },
        {
            "heading": "Scores by gene",
            "picture": _embed(folder / "gene_scores.png", gene_scores(adata, show=False)),
            "caption": f"Correlation of every gene on {name}; the genes of each method are sorted by their own scores. "
            f"The best and worst genes of {key} are labeled; they are known only after scoring.",
            "alt": "Falling curves of Pearson correlation over genes, one per method.",
            "table": html_table(_best_genes(get.scores(adata), key), digits=2),
            "table_caption": f"Pearson correlation of the {_BEST} genes with the best score of {key}, sorted after "
            f"scoring; for {key} also with depth removed, and the correlation of the gene with log depth.",
        },
        {
            "heading": "Where the reference covers the slide",
            "picture": _embed(folder / "support.png", support(adata, size=_SIZE, show=False)),
            "caption": "Support of each spot: the fraction of reference spots that lie at least as far from the other "
            "reference slides, in the image embedding, as this spot does. Near 0 the slide shows tissue that the "
            "reference lacks, and the prediction should not be used. Measured expression is not involved.",
            "alt": f"Spots of slide {name} colored by support, from 0 to 1.",
        },
    ]
    if history:
        sections.append(
            {
                "heading": "Training",
                "picture": _embed(folder / "training.png", training(history, show=False)),
                "caption": "Training of the networks on the reference slides, averaged over networks, with a fixed "
                "number of epochs. The correlation is that of the training slides. The target slide is not involved.",
                "alt": "Curves of loss and correlation over epochs.",
            }
        )
    return sections


def _best_genes(scores: pd.DataFrame, key: str) -> pd.DataFrame:
    """Scores of the genes that the prediction gets best, one column per method."""
    table = scores[scores["metric"] == "pearson"].pivot(index="gene", columns="method", values="value")
    table = table[scores["method"].unique()].dropna(axis="columns", how="all")
    own = scores[scores["method"] == key].pivot(index="gene", columns="metric", values="value")
    columns = {f"{key}, depth removed": own["pearson_depth_removed"], "log depth": own["depth_only"]}
    return table.assign(**columns).nlargest(_BEST, key)


def _embed(path: Path, ax: Axes) -> dict[str, Any]:
    """Write a figure as PNG, close it, and return it for the page."""
    figure: Any = ax.figure
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, facecolor="white")
    plt.close(figure)
    width, height = (round(_CSS_DPI * inches) for inches in figure.get_size_inches())
    return {"base64": base64.b64encode(path.read_bytes()).decode("ascii"), "width": width, "height": height}
