"""Results as Markdown: what the scripts print, and what the documentation and the README show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

UNIT_NAMES = {
    "log1p": "log1p counts per 10k (depth-normalized, the default)",
    "log10": "log10(counts + 1) (depth left in)",
}
EMBEDDING_NAMES = {"texture": "Texture embeddings (no weights)", "mobilenet": "MobileNet embeddings (ImageNet)"}
ORACLE = "depth oracle"
_GROUPS = {
    ("her2st", "same patient"): "breast, same patient",
    ("her2st", "new patient"): "breast, new patient",
    ("mob_st", "same patient"): "bulb",
    ("mob_st", "new patient"): "bulb",
    ("colon", "same section"): "colon",
}


def case_scores(content: Mapping[str, Any], unit: str, embedding: str, metric: str = "pearson") -> dict[str, Any]:
    """Score by method and case: the mean over a case's slides and over the seeds there are; `None` if there is none."""
    cases, scores = content["protocol"]["cases"], {}
    for method in content["protocol"]["methods"]:
        scores[method] = {case: _score(content, (case, embedding, unit, method), metric) for case in cases}
    if metric == "pearson":
        scores[ORACLE] = {case: _score(content, (case, embedding, unit, "ridge"), "depth_only") for case in cases}
    return scores


def _score(content: Mapping[str, Any], run: tuple[str, ...], metric: str) -> float | None:
    prefix = "|".join(run) + "|"
    found = [
        mean(slide[metric] for slide in result["slides"].values())
        for name, result in content["results"].items()
        if name.startswith(prefix) and all(slide[metric] is not None for slide in result["slides"].values())
    ]
    return mean(found) if found else None


def accuracy_table(content: Mapping[str, Any], unit: str, embedding: str) -> str:
    """A row a method: mean Pearson by kind of case, over all cases, and the difference to ridge with its interval.

    A method that was not to be run on some case (it needs more reference slides, say) has its mean over the others, and
    their number beside it; the difference to ridge is over the same cases. A run that is still missing is n/a.
    """
    cases, scores = content["protocol"]["cases"], case_scores(content, unit, embedding)
    kinds = {case: _GROUPS[entry["dataset"], entry["kind"]] for case, entry in cases.items()}
    groups = {kind: [case for case in cases if kinds[case] == kind] for kind in dict.fromkeys(_GROUPS.values())}
    groups = {kind: members for kind, members in groups.items() if members}
    rows = []
    for method, of_case in scores.items():
        prefixes = {case: f"{case}|{embedding}|{unit}|{'ridge' if method == ORACLE else method}|" for case in cases}
        has = [c for c in cases if any(name.startswith(prefixes[c]) for name in content["protocol"]["planned"])]
        if not has:
            continue
        cells = [_number(_mean(of_case, members) if set(members) <= set(has) else None) for members in groups.values()]
        whole = _number(_mean(of_case, has)) + ("" if len(has) == len(cases) else f" (of {len(has)})")
        rows.append([method, *cells, whole, *_to_ridge(of_case, scores["ridge"], has)])
    counts = [f"{kind} ({len(members)})" for kind, members in groups.items()]
    return markdown(["method", *counts, f"mean of {len(cases)}", "to ridge", "95 % interval"], rows)


DESIGNED_ON = ("C3", "C5", "mob_02", "colon q1")
"""Cases whose scores were in view while the default was designed."""


def untouched(content: Mapping[str, Any], embedding: str) -> str:
    """The default against ridge and context ridge on the cases that it was not designed on, depth-normalized."""
    scores = case_scores(content, "log1p", embedding)
    cases = [case for case in content["protocol"]["cases"] if case not in DESIGNED_ON]
    whole = _mean(scores["spahgc"], cases)
    others = {name: _mean(scores[name], cases) for name in ("ridge", "context_ridge", "low_rank_ridge", "fast")}
    if whole is None or None in others.values():
        return "n/a"
    listed = ", ".join(f"{name} {mean:.3f} ({whole / mean - 1:+.1%})" for name, mean in others.items() if mean)
    return (
        f"On the {len(cases)} cases that the default was not designed on ({embedding}): spahgc {whole:.3f}, {listed}."
    )


def _to_ridge(
    of_case: Mapping[str, float | None], ridge: Mapping[str, float | None], cases: Sequence[str]
) -> tuple[str, str]:
    """Relative difference of the means, and the interval of the paired difference from drawing cases again."""
    from spahgc.metrics import bootstrap

    whole, base = _mean(of_case, cases), _mean(ridge, cases)
    if whole is None or base is None:
        return "n/a", "n/a"
    found = bootstrap([of_case[case] - ridge[case] for case in cases], list(cases))
    return f"{whole / base - 1:+.1%}", f"{found.low:+.3f} to {found.high:+.3f}"


def cases_table(content: Mapping[str, Any], unit: str, embedding: str) -> str:
    """A row a method, a column a case."""
    cases = list(content["protocol"]["cases"])
    scores = case_scores(content, unit, embedding)
    return markdown(["method", *cases], [[m, *(_number(of[case]) for case in cases)] for m, of in scores.items()])


def seconds_table(content: Mapping[str, Any]) -> str:
    """Median seconds of a run, by method and data set."""
    cases = content["protocol"]["cases"]
    datasets = list(dict.fromkeys(entry["dataset"] for entry in cases.values()))
    rows = []
    for method in content["protocol"]["methods"]:
        times: dict[str, list[float]] = {name: [] for name in datasets}
        for name, result in content["results"].items():
            case, _, _, of, _ = name.split("|")
            if of == method:
                times[cases[case]["dataset"]].append(result["seconds"])
        rows.append([method, *(f"{median(times[name]):.1f}" if times[name] else "n/a" for name in datasets)])
    return markdown(["method", *datasets], rows)


def ablation_table(content: Mapping[str, Any]) -> str:
    """A row a variant: its mean, and the paired difference to the whole with its interval, on the same cases and seeds.

    A variant is shown with the seeds that it has on all cases.
    """
    from spahgc.metrics import bootstrap

    protocol, results = content["protocol"], content["results"]
    cases, reference = protocol["cases"], protocol["whole"]

    def of_case(variant: str, case: str, seeds: Sequence[int]) -> float:
        return mean(s["pearson"] for i in seeds for s in results[f"{variant}|{case}|{i}"]["slides"].values())

    rows = []
    for variant in protocol["variants"]:
        seeds = [i for i in range(protocol["seeds"]) if all(f"{variant}|{case}|{i}" in results for case in cases)]
        if not seeds:
            continue
        scores = [of_case(variant, case, seeds) for case in cases]
        differences = [score - of_case(reference, case, seeds) for score, case in zip(scores, cases, strict=True)]
        found = bootstrap(differences, cases)
        rows.append(
            [
                variant,
                str(len(seeds)),
                f"{mean(scores):.4f}",
                f"{found.mean:+.4f}",
                f"{found.low:+.4f} to {found.high:+.4f}",
                f"{found.mean / (mean(scores) - found.mean):+.1%}",
                f"{sum(d < 0 for d in differences)} of {len(differences)}",
            ]
        )
    return markdown(["variant", "seeds", "mean", "difference", "95 % interval", "relative", "cases below"], rows)


_TRUST = (
    ("spearman", "Spearman"),
    ("mean", "all"),
    ("mean_top", "top 50"),
    ("mean_oracle", "oracle 50"),
    ("mean_trusted", "trusted"),
    ("mean_weak", "weak"),
    ("mean_not predictable", "not pred."),
    ("coverage", "coverage"),
    ("coverage_top", "cov. top 50"),
    ("width", "width"),
)


def trust_table(results: Mapping[str, Any]) -> str:
    """A row a method and held-out slide; then the mean over the slides whose patient is in the reference."""
    rows = []
    for method in dict.fromkeys(name.split()[0] for name in results):
        of = {name.split()[1]: row for name, row in results.items() if name.split()[0] == method}
        rows += [[method, slide, row["kind"], *(_number(row[name]) for name, _ in _TRUST)] for slide, row in of.items()]
        same = [row for row in of.values() if row["kind"] == "same patient"]
        if same:
            means = [
                _mean({str(i): row[name] for i, row in enumerate(same)}, map(str, range(len(same))))
                for name, _ in _TRUST
            ]
            rows.append([method, "mean", "same patient", *map(_number, means)])
    return markdown(["method", "slide", "kind", *(title for _, title in _TRUST)], rows)


_EVIDENCE = (
    ("mean", "spots"),
    ("least", "least agreement"),
    ("most", "most agreement"),
    ("agreement", "Spearman, agreement"),
    ("support", "Spearman, support"),
    ("genes", "genes, prediction"),
    ("genes_evidence", "genes, evidence alone"),
)


def evidence_table(results: Mapping[str, Any]) -> str:
    """A row a case, and the mean over them."""
    rows = [[name, *(_number(row[key]) for key, _ in _EVIDENCE)] for name, row in results.items()]
    rows.append(["mean", *(_number(mean(row[key] for row in results.values())) for key, _ in _EVIDENCE)])
    return markdown(["case", *(title for _, title in _EVIDENCE)], rows)


_COMPARED = ("ridge", "spahgc", "paper's network", "depth oracle")


def steps_table(content: Mapping[str, Any]) -> str:
    """From the honest protocol to the published ones: a row a step."""
    rows = []
    for step in content["steps"].values():
        means = {name: mean(of.values()) for name, of in step["scores"].items()}
        rows.append([step["text"], *(f"{means[c]:.3f}" if c in means else "" for c in _COMPARED)])
    return markdown(["protocol", *_COMPARED], rows)


def pairs_table(content: Mapping[str, Any]) -> str:
    """Each slide from a single other one: what the patient is worth."""
    columns = [c for c in _COMPARED if all(c in of for of in content["pairs"].values())]
    rows = [
        [f"{kind} ({of['n']} predictions)", *(f"{of[c]:.3f}" for c in columns)] for kind, of in content["pairs"].items()
    ]
    return markdown(["from one other slide, honest unit and panel", *columns], rows)


def protocol_table(content: Mapping[str, Any]) -> str:
    """Data, protocol and machine of a run."""
    listed = ("cases", "methods", "planned")
    rows = [(key, str(value)) for key, value in content["protocol"].items() if key not in listed]
    machine = content["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    rows.append(
        ("machine", f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, {versions}")
    )
    rows.append(("commits", ", ".join(sorted({result["commit"] for result in content["results"].values()}))))
    planned = content["protocol"]["planned"]
    done = sum(name in content["results"] for name in planned)
    rows.append(("seeds so far, depth-normalized", _seeds_so_far(content)))
    rows.append(("runs", f"{done} of {len(planned)} done, {content['seconds'] / 60:.0f} minutes in all"))
    return "\n".join(f"- **{name}**: {value}" for name, value in rows)


def _seeds_so_far(content: Mapping[str, Any]) -> str:
    """Of the methods that are planned with several seeds: how many each has on all its cases."""
    done: dict[str, int] = {}
    planned = {tuple(name.rsplit("|", 1)) for name in content["protocol"]["planned"] if "|log1p|" in name}
    several = {run for run, seed in planned if seed != "0"}
    for run in several:
        n = sum(f"{run}|{seed}" in content["results"] for of, seed in planned if of == run)
        method = run.split("|")[3]
        done[method] = min(n, done.get(method, n))
    return "; ".join(
        f"{n}: {', '.join(m for m in content['protocol']['methods'] if done.get(m) == n)}"
        for n in sorted(set(done.values()), reverse=True)
    )


def _mean(of_case: Mapping[str, float | None], members: Any) -> float | None:
    values = [of_case[case] for case in members]
    return None if None in values else mean(values)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([row(header), row(rule), *map(row, rows)])
