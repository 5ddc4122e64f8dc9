"""``spahgc demo``: from slides to a scored prediction and its report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from .. import __version__, datasets, get, tl
from .. import _keys as keys
from .._disk import replacing, write_h5ad
from .._tables._cohorts import measured_expression
from ..metrics import share_above
from ..pl._report import MINUS, html_table, write_report
from ..pp import image_embedding
from ..tl._model_folder import check_free

METHODS = ("spahgc", "context_ridge", "low_rank_ridge", "ridge", "knn", "gene_mean")  # the method and its controls
ORACLE = "depth only (oracle)"
RECORD = "demo.json"
FILES = {
    "predictions.h5ad": "AnnData for scanpy and squidpy. X is the prediction of spahgc; layers hold the predictions of "
    "the controls and the measured expression, obs the support of each spot, var the scores of each gene.",
    "scores.csv": "every score of every gene and method.",
    "report.html": "this page.",
    "figures": "the figures of this page.",
    "model": "the trained model, for spahgc.tl.Model.load or spahgc predict. It contains the embeddings and expression "
    "of the reference.",
    RECORD: "marks this folder as one that the demonstration may write to again.",
}
# Genes to draw, chosen before any prediction was seen.
MARKER_GENES = {
    "ERBB2": "HER2, the receptor that these tumors overexpress",
    "COL1A1": "collagen of the stroma",
    "IGKC": "plasma cells",
}
DRAWN_GENES = {
    "density-00": "planted: density of the nuclei",
    "color-00": "planted: color of the tissue",
    "context-00": "planted: density of the nuclei around the spot",
    "noise-00": "not linked to the image: nothing can predict it",
}
_MEANING = (
    "The score is the Pearson correlation of predicted and measured expression over the spots of the slide, gene by "
    "gene: it tests whether the spatial pattern is right. Expression is log-transformed counts per 10,000, because on "
    "raw counts a predictor of sequencing depth alone appears accurate without any information about genes.",
    "Ridge regression on the same embeddings is the control to beat. Context ridge also sees the surroundings of a "
    "spot, kNN copies the most similar reference spots, and the gene mean predicts the same value everywhere. A "
    "network is worth its cost only by its difference to these.",
    '"Depth removed" is the correlation after the depth of each spot is regressed out of both sides; what remains '
    "cannot come from depth.",
    "A prediction is an expectation from what the image shows, not a measurement. Do not use genes whose score is low "
    "here. A good score on one slide does not transfer to another tissue, stain or scanner.",
)


@dataclass(frozen=True)
class Example:
    """Slides of the demonstration, and genes to draw with their descriptions."""

    name: str
    origin: str
    reference: SpatialData
    target: SpatialData
    genes: Mapping[str, str]
    drawn: bool


def run(
    out: Path = Path("demo_output"),
    *,
    say: Callable[[str], None],
    data: Path | None = None,
    synthetic: bool = False,
    seed: int = 0,
    cohort: Mapping[str, Any] | None = None,
    method_params: Mapping[str, Any] | None = None,
) -> None:
    """Train on the reference, predict the target from its H&E, score it, and write everything to a folder."""
    prepare(out)
    start = time.perf_counter()

    def begin(message: str) -> None:
        say(f"{time.perf_counter() - start:6.1f} s  {message}")

    folder, real = find_data(data)
    if not real and not synthetic:
        say(f"No her2st/ in {folder}; --data names another folder.")
    drawn = synthetic or not real
    if drawn:
        say("Slides are DRAWN, not real: the scores show that the parts work together, and nothing about tissue.")
    begin("drawing the slides" if drawn else "reading the slides")
    example = drawn_slides(seed, **(cohort or {})) if drawn else real_slides(folder)
    # From here to the scores the target has no genes, so no step can read its measured expression.
    reference, blind = example.reference, he_only(example.target)
    adata_ref, adata_blind = reference.tables[keys.TABLE], blind.tables[keys.TABLE]

    begin(f"embedding {adata_ref.n_obs + adata_blind.n_obs} tiles (texture, no pretrained weights)")
    image_embedding(reference)
    image_embedding(blind)

    same_patient = set(adata_blind.obs[keys.PATIENT]) <= set(adata_ref.obs[keys.PATIENT])
    split_by: Any = "slide" if same_patient else "patient"
    models = {}
    for method in METHODS:
        begin(f"training {method} on {', '.join(adata_ref.obs[keys.REGION].unique())}")
        own = method_params if method == "spahgc" else None
        models[method] = tl.train(adata_ref, method=method, method_params=own, split_by=split_by, rng=seed)
    begin(f"predicting {', '.join(adata_blind.obs[keys.REGION].unique())} from its H&E")
    for method, model in models.items():
        tl.predict(model, adata_blind, key_added=method)

    begin("scoring against what was measured")
    target = example.target.tables[keys.TABLE].copy()
    target.obs[keys.slot(keys.PREDICTION, "support")] = adata_blind.obs[keys.slot(keys.PREDICTION, "support")]
    for method in METHODS:
        target.obsm[method], target.uns[method] = adata_blind.obsm[method], adata_blind.uns[method]
        tl.evaluate(target, key=method)
    record, params = target.uns[keys.PREDICTION], target.uns[keys.PREDICTION][keys.PARAMS]
    scores = pd.concat([get.scores(target, key=method) for method in METHODS], ignore_index=True)
    scores.insert(2, "same_patient", scores["patient"].isin(params["shared_patients"]))
    summary = summarize(scores)

    begin(f"writing {out}")
    models["spahgc"].save(out / "model", overwrite=True)
    with replacing(out / "scores.csv") as temporary:
        scores.to_csv(temporary, index=False)
    write_h5ad(out / "predictions.h5ad", table_for_scanpy(target))
    target.uns[keys.slot(keys.PREDICTION, "scores")] = scores.to_dict("list")
    write_page(out, example, target, summary, history=models["spahgc"].history, seed=seed)

    say(
        f"\n{' '.join(params['target_slides'])}: {target.n_obs} spots, {len(record['genes'])} genes chosen on the "
        f"reference {', '.join(params['reference_slides'])}; {record['units']}; mean over genes"
    )
    say("\n".join(remarks(params, drawn=drawn)))
    widths = [max(6, len(str(name)) + 1) for name in summary]
    say(f"\n{formatted(summary).rename_axis(None).to_string(col_space=widths)}\n")
    begin(f"done. Look at {out / 'report.html'}")


def find_data(data: Path | None) -> tuple[Path, bool]:
    """Folder of the real slides, and whether it contains them."""
    if data is not None and not (data / "her2st").is_dir():
        raise FileNotFoundError(f"There is no folder her2st in {data} (--data).")
    folder = data or Path(os.environ.get("SPAHGC_DATA_DIR") or Path("..") / "shared" / "data")
    return folder, (folder / "her2st").is_dir()


def real_slides(folder: Path) -> Example:
    """HER2+ breast cancer: the target C4 and three of the reference slides are of patient C."""
    path = folder / "her2st"
    return Example(
        name="HER2+ breast cancer",
        origin=f"{path} (Andersson et al., Nature Communications 2021)",
        reference=datasets.her2st(path, slides=["B4", "C2", "C3", "C5"]),
        target=datasets.her2st(path, slides=["C4"]),
        genes=MARKER_GENES,
        drawn=False,
    )


def drawn_slides(seed: int, **parameters: Any) -> Example:
    """Drawn slides: the last one, of a patient of its own, is the target."""
    cohort = datasets.synthetic_cohort(**{"n_slides": 5, "n_patients": 3, "rng": seed, **parameters})
    *reference, target = cohort.tables[keys.TABLE].obs[keys.REGION].cat.categories
    return Example(
        name="Synthetic cohort",
        origin="spahgc.datasets.synthetic_cohort",
        reference=cohort.filter_by_coordinate_system(reference),
        target=cohort.filter_by_coordinate_system(target),
        genes=DRAWN_GENES,
        drawn=True,
    )


def he_only(sdata: SpatialData) -> SpatialData:
    """The same images and spots with a table without genes."""
    blind = sdata.tables[keys.TABLE][:, :0].copy()
    return SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={keys.TABLE: blind})


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean score over genes, one row per method and one for the oracle that knows depth alone.

    Undefined scores are NaN, such as the correlation of the gene mean, which is constant.
    """
    values = scores.groupby(["method", "metric"])["value"]
    means, shares = values.mean().unstack(), values.agg(share_above).unstack()
    # The depth of a spot, and so the score of the oracle, is the same for all methods.
    means.loc[ORACLE, "pearson"] = means["depth_only"]["ridge"]
    shares.loc[ORACLE, "pearson"] = shares["depth_only"]["ridge"]
    return pd.DataFrame(
        {
            "Pearson": means["pearson"],
            "to ridge": means["pearson"] - means["pearson"]["ridge"],
            "Spearman": means["spearman"],
            "RMSE": means["rmse"],
            "Pearson, depth removed": means["pearson_depth_removed"],
            "genes above 0.3": shares["pearson"],
        },
        index=pd.Index([*METHODS, ORACLE], name="method"),
    )


def formatted(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary as text."""
    text = summary.astype(object).map("{:.3f}".format)
    text["to ridge"] = summary["to ridge"].map("{:+.3f}".format)
    text["genes above 0.3"] = (100 * summary["genes above 0.3"]).map("{:.0f} %".format)
    return text.where(summary.notna(), "n/a")


def table_for_scanpy(target: AnnData) -> AnnData:
    """Prediction of spahgc in ``X``, controls and measurement in ``layers``, scores in ``var``."""
    table = get.predicted(target)
    for method in METHODS[1:]:
        table.layers[method] = target.obsm[method][table.var_names].to_numpy()
    unit = target.uns[keys.PREDICTION][keys.PARAMS]["normalize"]
    here = [gene for gene in table.var_names if gene in target.var_names]
    measured = pd.DataFrame(measured_expression(target, here, unit, layer=None)[0], columns=here)
    table.layers[keys.MEASURED] = measured.reindex(columns=table.var_names).to_numpy()
    return table


def remarks(params: Mapping[str, Any], *, drawn: bool) -> list[str]:
    """Limits of the scores."""
    name, shared = " ".join(params["target_slides"]), params["shared_patients"]
    pairs = zip(params["reference_slides"], params["reference_patients"], strict=True)
    same = ", ".join(slide for slide, patient in pairs if patient in shared)
    return [
        *(["Drawn slides, not real ones: the scores say nothing about tissue."] if drawn else []),
        f"Same patient: {name} is of patient {', '.join(shared)}, as the reference slides {same} are. On another "
        "patient's slide expect less."
        if same
        else f"{name} is of a patient that the reference does not have.",
        "One target slide: an interval over slides or patients cannot be given.",
    ]


def write_page(
    out: Path,
    example: Example,
    target: AnnData,
    summary: pd.DataFrame,
    *,
    history: Mapping[str, Any],
    seed: int,
) -> None:
    """Write the report and its figures."""
    record = target.uns[keys.PREDICTION]
    params, panel = record[keys.PARAMS], [str(gene) for gene in record["genes"]]
    name, patient = " ".join(params["target_slides"]), " (same patient)" if params["shared_patients"] else ""
    own: dict[str, Any] = summary.T.to_dict()["spahgc"]
    result = {
        "heading": "Result",
        "text": [
            f"The expression of {len(panel)} genes in {target.n_obs} spots of {name} was predicted from its H&E image, "
            f"by training on {len(params['reference_slides'])} slides that have both. The prediction was made from a "
            "table without genes; the measured expression of the slide was joined for the scores only. The mean "
            f"correlation over genes is {own['Pearson']:.2f} ({own['to ridge']:+.3f} compared with ridge on the same "
            f"embeddings), and {100 * own['genes above 0.3']:.0f} % of the genes are above 0.3.",
            "A constant has no correlation, so the gene mean has none (n/a). The last row is an oracle that knows the "
            "measured depth of each spot, which no method does, and nothing about genes.",
        ],
        "warnings": remarks(params, drawn=example.drawn),
        "table": html_table(formatted(summary).replace("-", MINUS, regex=True), classes="summary"),
        "table_caption": f"Scores of {name} over {len(panel)} genes{patient}: mean over genes of the score over spots. "
        "RMSE is in the unit of the expression.",
    }
    encoder = record["encoder"]
    fields = ", ".join(f"{encoder['tile_um'] * field:.0f}" for field in encoder["fields_of_view"])
    pairs = zip(params["reference_slides"], params["reference_patients"], strict=True)
    how = {
        "Slides": f"{example.name}: {example.origin}",
        "Reference": [f"{slide} (patient {patient})" for slide, patient in pairs],
        "Embedding": f"{encoder['encoder']}, tiles of {fields} um, standardized per slide",
        "Panel": f"{len(panel)} genes with the best mean dispersion rank over the reference slides, detected in more "
        "than 5 % of their spots",
        "Unit": record["units"],
        "Held out while tuning": f"one {params['split_by']} of the reference at a time",
        "Model": record["model"],
        "Seed": str(seed),
        "Versions": [f"{name} {version(name)}" for name in ("spahgc", "torch", "torch-geometric", "anndata")],
    }
    write_report(
        target,
        out / "report.html",
        genes={gene: text for gene, text in example.genes.items() if gene in panel}
        or dict.fromkeys(panel[:3], "of the panel"),
        result=result,
        history=history,
        closing=[
            {"heading": "What the numbers mean", "text": _MEANING},
            {"heading": "How it was made", "facts": how},
            {"heading": "Files", "entries": [f"{file}: {text}" for file, text in FILES.items()]},
        ],
        title=f"spahgc: expression of {name} from its H&E",
        subtitle=f"{example.name}. {'Drawn slides, not real ones. ' if example.drawn else ''}"
        "Research software, not for diagnosis.",
    )


def prepare(out: Path) -> None:
    """Make the folder and mark it as a demonstration's; raise if it contains files from elsewhere."""
    taken = [name for name in FILES if (out / name).exists()]
    ours = (out / RECORD).is_file() and '"written_by": "spahgc demo"' in (out / RECORD).read_text(encoding="utf-8")
    if taken and not ours:
        raise FileExistsError(
            f"{out} contains {', '.join(taken)}, and not from a demonstration; nothing was touched. Choose another "
            "folder: --out."
        )
    check_free(out / "model", overwrite=True)
    with replacing(out / RECORD) as temporary:
        temporary.write_text(json.dumps({"written_by": "spahgc demo", "version": __version__}), encoding="utf-8")
