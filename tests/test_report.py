from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spahgc import _report
from spahgc._report import Facts, Items, Picture, Section, Table, Text, write_report

EVIL = "<script>alert('x')</script> & \"quoted\""
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
def png() -> bytes:
    import io

    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(3, 2), dpi=100)
    ax.plot([1, 2])
    buffer = io.BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    return buffer.getvalue()


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Pearson": [0.2044, -0.1, np.nan],
            "genes": [300, 300, 300],
            "above": ["34 %", "1 %", "0 %"],
            EVIL: ["a", "b", "c"],
        },
        index=pd.Index(["spahgc", "ridge", EVIL], name="method"),
    )


def sections(png: bytes, frame: pd.DataFrame) -> list[Section]:
    return [
        Section("What was done", [Text(f"One.\n\nTwo {EVIL}\nlines."), Facts({"Data": EVIL, "Slides": ["B4", "C2"]})]),
        Section(EVIL, [Items([EVIL], warning=True), Table(frame, f"Scores {EVIL}", strong=["spahgc"])]),
        Section("Figures", [Picture(png, f"Gene {EVIL}"), Picture(png, "Caption", alt=f"In words {EVIL}")]),
        Section("Files", [Items(["predictions.h5ad"])]),
    ]


@pytest.fixture
def text(tmp_path: Path, png: bytes, frame: pd.DataFrame) -> str:
    path = write_report(
        tmp_path / "new" / "report.html", title=f"T {EVIL}", subtitle=EVIL, sections=sections(png, frame)
    )
    assert path == tmp_path / "new" / "report.html"
    return path.read_text(encoding="utf-8")


def test_one_file_that_loads_nothing(text: str) -> None:
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    for _, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on")
            if name in ("src", "srcset"):
                assert str(value).startswith("data:image/png;base64,")
            if name == "href":
                assert str(value).startswith("#")
    assert "url(" not in text
    assert "@import" not in text


def test_everything_from_data_is_escaped(text: str) -> None:
    assert "<script" not in text
    page = Page(text)
    texts = [content for _, content in page.text]
    assert sum(EVIL in content for content in texts) >= 9
    assert page.attributes("img")[1]["alt"] == f"In words {EVIL}"
    assert page.attributes("img")[0]["alt"] == f"Gene {EVIL}"


def test_contents_lead_to_the_sections(text: str) -> None:
    page = Page(text)
    assert [attrs["id"] for attrs in page.attributes("section")] == [
        str(attrs["href"])[1:] for attrs in page.attributes("a")
    ]
    assert page.texts("h2") == ["What was done", EVIL, "Figures", "Files"]
    assert page.texts("p")[1:3] == ["One.", f"Two {EVIL} lines."]
    assert page.attributes("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.attributes("meta")


def test_table_has_headers_with_scope_and_rounded_numbers(text: str) -> None:
    page = Page(text)
    assert [attrs["scope"] for attrs in page.attributes("th")] == ["col"] * 5 + ["row"] * 3
    assert page.texts("td")[:8] == ["0.204", "300", "34 %", "a", "\u22120.100", "300", "1 %", "b"]
    assert "n/a" in page.texts("td")
    numbers = [attrs.get("class") for attrs in page.attributes("td")]
    assert numbers == ["number", "number", "number", None] * 3
    assert [attrs.get("class") for attrs in page.attributes("tr")] == [None, "strong", None, None]
    assert page.texts("dd") == [EVIL, "B4, C2"]


def test_picture_is_the_png_itself(text: str, png: bytes) -> None:
    image = Page(text).attributes("img")[0]
    assert base64.b64decode(str(image["src"]).partition(",")[2]) == png
    assert (image["width"], image["height"]) == ("240", "160")


def test_picture_from_a_figure_and_from_a_file(png: bytes, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    (tmp_path / "a.png").write_bytes(png)
    assert (
        Picture(tmp_path / "a.png", "c").html()
        == Picture(png, "c").html()
        == Picture(str(tmp_path / "a.png"), "c").html()
    )
    figure = plt.figure(figsize=(6, 2))
    image = Page(Picture(figure, "c").html()).attributes("img")[0]
    plt.close(figure)
    assert (image["width"], image["height"], image["class"]) == ("720", "240", "wide")
    with pytest.raises(ValueError, match="figure or a PNG"):
        Picture(b"GIF89a", "c").html()


def test_old_report_stays_when_writing_fails(
    tmp_path: Path, png: bytes, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="at least one section"):
        write_report(path, title="t", sections=[])

    def full(self: Path, *args: object, **kwargs: object) -> int:
        self.touch()
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(_report.Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            write_report(path, title="t", sections=sections(png, frame))
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]

    write_report(path, title="t", sections=sections(png, frame))
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_dollar_signs_are_text(tmp_path: Path) -> None:
    path = write_report(
        tmp_path / "r.html", title="$body", sections=[Section("s", [Text("costs $title or ${footer}")])]
    )
    assert Page(path.read_text()).texts("p")[0] == "costs $title or ${footer}"


def test_empty_table() -> None:
    page = Page(Table(pd.DataFrame({"a": []}), "none").html())
    assert len(page.attributes("tr")) == 1
