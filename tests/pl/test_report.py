"""The report page: one file, everything from data escaped, and an old page that survives a failure."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from spahgc.pl._report import html_table, write_report

from .conftest import GENES, make_slide

EVIL = "<script>alert('x')</script> & \"quoted\" {{ title }} $body"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((self.open[-1], data.strip()))

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [text for name, text in self.text if name == tag]


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Pearson": [0.2044, -0.1, np.nan],
            "genes": [300, 300, 300],
            "above": ["34 %", "1 %", "0 %"],
            EVIL: [EVIL] * 3,
        },
        index=pd.Index(["spahgc", "ridge", EVIL], name="method"),
    )


@pytest.fixture
def scored() -> ad.AnnData:
    """A slide and a gene with malicious names, scored."""
    slide = make_slide(EVIL)
    slide.var_names = [EVIL, *slide.var_names[1:]]
    slide.obsm["spahgc"] = slide.obsm["spahgc"].rename(columns={GENES[0]: EVIL})
    slide.uns["spahgc"] |= {"genes": [EVIL, *GENES[1:]], "params": {"normalize": "log1p", "target_slides": [EVIL]}}
    rows = [
        (EVIL, "A", method, gene, metric, 0.1 * i)
        for method in ("spahgc", "ridge")
        for i, gene in enumerate([EVIL, *GENES[1:]])
        for metric in ("pearson", "pearson_depth_removed", "depth_only")
    ]
    columns = ["slide", "patient", "method", "gene", "metric", "value"]
    slide.uns["spahgc_scores"] = pd.DataFrame(rows, columns=columns).to_dict("list")
    return slide


def write(scored: ad.AnnData, frame: pd.DataFrame, path: Path) -> Page:
    result = {
        "heading": "Result",
        "text": ["One.", EVIL],
        "warnings": [EVIL],
        "table": html_table(frame, classes="summary"),
        "table_caption": EVIL,
    }
    closing = [
        {"heading": EVIL, "facts": {EVIL: EVIL, "Slides": ["B4", EVIL]}},
        {"heading": "Files", "entries": [EVIL]},
    ]
    write_report(scored, path, genes={EVIL: EVIL}, result=result, closing=closing, title=EVIL, subtitle=EVIL)
    return Page(path.read_text(encoding="utf-8"))


def test_one_file_that_loads_nothing_and_escapes_all(scored: ad.AnnData, frame: pd.DataFrame, tmp_path: Path) -> None:
    page = write(scored, frame, tmp_path / "new" / "report.html")
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        assert str(attrs.get("src", "data:image/png;base64,")).startswith("data:image/png;base64,")
        assert str(attrs.get("href", "#")).startswith("#")
    text = (tmp_path / "new" / "report.html").read_text()
    assert [word for word in ("<script", "url(", "@import") if word in text] == []
    # As text it appears as it was given, braces and dollar signs included.
    assert page.texts("h1") == page.texts("title") == [EVIL]
    assert page.texts("p")[:3] == [EVIL, "One.", EVIL]
    assert page.texts("li")[-1] == EVIL
    assert EVIL in page.texts("dt")
    assert page.texts("dd") == [EVIL, f"B4, {EVIL}"]
    assert page.texts("th").count(EVIL) == 3
    assert page.texts("td").count(EVIL) == 3
    assert all(EVIL in str(image["alt"]) for image in page.attributes("img") if "Spots of" in str(image["alt"]))
    assert page.attributes("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.attributes("meta")


def test_sections_figures_and_tables(scored: ad.AnnData, frame: pd.DataFrame, tmp_path: Path) -> None:
    page = write(scored, frame, tmp_path / "report.html")
    headings = ["Predicted and measured", "Scores by gene", "Where the reference covers the slide"]
    assert page.texts("h2") == ["Result", *headings, EVIL, "Files"]
    assert [f"#{section['id']}" for section in page.attributes("section")] == [a["href"] for a in page.attributes("a")]
    for name, image in zip(("expression", "gene_scores", "support"), page.attributes("img"), strict=True):
        png = base64.b64decode(str(image["src"]).partition(",")[2])
        assert png == (tmp_path / "figures" / f"{name}.png").read_bytes()
        width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
        assert abs(int(str(image["width"])) - 0.6 * width) <= 1
        assert abs(int(str(image["height"])) - 0.6 * height) <= 1
    assert page.texts("td")[:8] == ["0.204", "300", "34 %", EVIL, "\u22120.100", "300", "1 %", EVIL]
    assert page.texts("th")[:2] == ["method", "Pearson"]
    assert page.texts("td")[8] == "n/a"
    # The best genes of the prediction, best first, with the other method beside it.
    columns = ["gene", "spahgc", "ridge", "spahgc, depth removed", "log depth"]
    assert page.texts("th")[8:15] == [*columns, GENES[3], GENES[2]]


def test_old_report_stays_when_writing_fails(
    scored: ad.AnnData, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(self: Path, *args: object, **kwargs: object) -> int:
        self.touch()
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            write(scored, frame, path)
    assert path.read_text() == "old"
    write(scored, frame, path)
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert {entry.name for entry in tmp_path.iterdir()} == {"figures", "report.html"}
