"""Results as Markdown: what the scripts print, and what the documentation and the README show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

UNIT_NAMES = {
    "log1p": "log1p counts per 10k (depth-normalised, the default)",
    "log10": "log10(counts + 1) (depth left in)",
}


def accuracy_table(content: Mapping[str, Any], unit: str) -> str:
    """Mean per-gene Pearson, a row a method: every held-out slide, their mean, and that against ridge's.

    Parameters
    ----------
    content
        What ``accuracy.py`` wrote.
    unit
        ``"log1p"`` or ``"log10"``.
    """
    results, targets = content["results"], content["protocol"]["targets"]
    rows = {m: [results[f"{t}|{unit}|{m}"]["pearson"] for t in targets] for m in content["protocol"]["methods"]}
    rows["depth oracle"] = [results[f"{t}|{unit}|ridge"]["depth_only"] for t in targets]
    ridge = mean(rows["ridge"])
    lines = []
    for method, values in rows.items():
        if None in values:
            lines.append([method, *["n/a"] * (len(targets) + 2)])
        else:
            lines.append([method, *(f"{v:.3f}" for v in [*values, mean(values)]), f"{mean(values) / ridge - 1:+.1%}"])
    return markdown(["method", *targets, "mean", "to ridge"], lines)


def protocol_table(content: Mapping[str, Any]) -> str:
    """Data, protocol and machine of a run."""
    rows = [[key, str(value)] for key, value in content["protocol"].items() if key not in ("targets", "methods")]
    machine = content["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    rows.append(
        ["machine", f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, {versions}"]
    )
    rows.append(["commit", machine["commit"]])
    return "\n".join(f"- **{name}**: {value}" for name, value in rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([row(header), row(rule), *map(row, rows)])
