"""One self-contained HTML page: text, tables and figures in a single file, without scripts or links to other files."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.metadata import version
from importlib.resources import files
from numbers import Integral, Real
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_PNG = b"\x89PNG\r\n\x1a\n"
_DPI = 200
"""Resolution of figures."""
_FILE_DPI = 150
"""Resolution at which PNG files are taken to be."""
_CSS_DPI = 120
"""Pixels of the page per inch of a figure: a text of 8.5 points is a little smaller than the page's."""


class Block(Protocol):
    """A part of a section."""

    def html(self) -> str:
        """The part as HTML; everything that comes from data is escaped."""
        ...


@dataclass(frozen=True)
class Text:
    """Paragraphs of plain text, separated by an empty line."""

    text: str

    def html(self) -> str:
        """The paragraphs."""
        parts = [" ".join(part.split()) for part in self.text.strip().split("\n\n")]
        return "\n".join(f"<p>{escape(part)}</p>" for part in parts if part)


@dataclass(frozen=True)
class Facts:
    """Names and values: data, protocol, versions, machine. Several values of a name are listed with commas."""

    facts: Mapping[str, Any]

    def html(self) -> str:
        """A description list."""
        rows = "\n".join(f"<dt>{escape(str(k))}</dt><dd>{escape(_listed(v))}</dd>" for k, v in self.facts.items())
        return f"<dl>\n{rows}\n</dl>"


@dataclass(frozen=True)
class Items:
    """A list: warnings, or the files that were written.

    Parameters
    ----------
    items
        Its entries, plain text.
    warning
        Set it off as warnings.
    """

    items: Sequence[str]
    warning: bool = False

    def html(self) -> str:
        """A bullet list."""
        rows = "\n".join(f"<li>{escape(str(item))}</li>" for item in self.items)
        return f"<ul{_class('warning' if self.warning else '')}>\n{rows}\n</ul>"


@dataclass(frozen=True)
class Table:
    """A data frame; its index is the first column.

    Parameters
    ----------
    frame
        The values; columns of numbers are aligned to the right, NaN is written as "n/a".
    caption
        What the table shows.
    digits
        Digits after the point of numbers that are not whole.
    strong
        Labels of the rows to print in bold.
    """

    frame: pd.DataFrame
    caption: str
    digits: int = 3
    strong: Sequence[str] = ()

    def html(self) -> str:
        """A table with a caption, and headers that say what they head."""
        corner = " ".join(str(name) for name in self.frame.index.names if name is not None)
        columns = list(zip(*self.frame.itertuples(index=False, name=None), strict=True)) or [()] * self.frame.shape[1]
        numeric = [bool(values) and all(map(_reads_as_number, values)) for values in columns]
        head = [_cell("th", corner, scope="col")]
        head += [_cell("th", name, scope="col", number=n) for name, n in zip(self.frame.columns, numeric, strict=True)]
        rows = [f"<tr>{''.join(head)}</tr>"]
        for label, values in zip(self.frame.index, self.frame.itertuples(index=False, name=None), strict=True):
            text = " ".join(map(str, label)) if isinstance(label, tuple) else str(label)
            cells = [_cell("td", _number(v, self.digits), number=n) for v, n in zip(values, numeric, strict=True)]
            strong = _class("strong" if text in self.strong else "")
            rows.append(f"<tr{strong}>{_cell('th', text, scope='row')}{''.join(cells)}</tr>")
        # The span stays in sight where a wide table is scrolled on a narrow screen.
        caption = f"<caption><span>{escape(self.caption)}</span></caption>"
        body = "\n".join(rows[1:])
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(self.caption)}">\n'
            f"<table>{caption}\n<thead>{rows[0]}</thead>\n<tbody>\n{body}\n</tbody></table></div>"
        )


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure.

    Parameters
    ----------
    image
        A matplotlib figure, or a PNG: its bytes, or the path of its file.
    caption
        What it shows, and what to see in it.
    alt
        The picture in words, for readers who do not see it; empty takes the caption.
    """

    image: Figure | bytes | str | Path
    caption: str
    alt: str = ""

    def html(self) -> str:
        """A figure with the picture in it, base64."""
        png = _png(self.image)
        # Width and height stand in the PNG's header; with them the page does not jump while it loads.
        width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
        dpi = _DPI if hasattr(self.image, "savefig") else _FILE_DPI
        size = f'width="{_CSS_DPI * width // dpi}" height="{_CSS_DPI * height // dpi}"'
        wide = _class("wide" if width > 5 * dpi else "")
        data = base64.b64encode(png).decode("ascii")
        return (
            f'<figure>\n<div class="scroll"><img{wide} src="data:image/png;base64,{data}" {size} '
            f'alt="{escape(self.alt or self.caption)}"></div>\n<figcaption>{escape(self.caption)}</figcaption></figure>'
        )


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    blocks: Sequence[Block]


def write_report(path: str | Path, *, title: str, sections: Sequence[Section], subtitle: str = "") -> Path:
    """Write a report as one HTML file that needs no other file, script or connection.

    The file appears when it is complete: it is written under another name beside it and then renamed.

    Parameters
    ----------
    path
        The file; its folder is made if it is not there.
    title
        Title of the page, plain text as all other text is.
    sections
        What the page holds.
    subtitle
        A line under the title.

    Returns
    -------
    The path of the file.

    Raises
    ------
    ValueError
        If there are no sections, or a picture is not a PNG.
    """
    path = Path(path)
    if not sections:
        raise ValueError("A report needs at least one section.")
    template = Template(files("spahgc").joinpath("_report.html").read_text(encoding="utf-8"))
    names = [f"section-{i}" for i in range(1, len(sections) + 1)]
    page = template.substitute(
        title=escape(title),
        subtitle=f"<p>{escape(subtitle)}</p>" if subtitle else "",
        contents="\n".join(
            f'<li><a href="#{name}">{escape(section.heading)}</a></li>'
            for name, section in zip(names, sections, strict=True)
        ),
        body="\n".join(_section(name, section) for name, section in zip(names, sections, strict=True)),
        footer=escape(f"Written by spahgc {version('spahgc')} on {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}."),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, page)
    return path


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _section(name: str, section: Section) -> str:
    blocks = "\n".join(block.html() for block in section.blocks)
    return f'<section id="{name}">\n<h2>{escape(section.heading)}</h2>\n{blocks}\n</section>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _cell(tag: str, value: Any, *, scope: str = "", number: bool = False) -> str:
    scope = f' scope="{scope}"' if scope else ""
    return f"<{tag}{scope}{_class('number' if number else '')}>{escape(str(value))}</{tag}>"


def _reads_as_number(value: Any) -> bool:
    """Numbers, and text such as ``"34 %"`` or ``"0.20 (0.15 to 0.24)"``."""
    if isinstance(value, str):
        return value[:1] in tuple("+-\N{MINUS SIGN}0123456789")
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def _number(value: Any, digits: int) -> str:
    # NaN, and pandas' own missing values.
    if value is None or str(value) in ("nan", "<NA>", "NaT"):
        return "n/a"
    if not isinstance(value, Real) or isinstance(value, Integral):
        return str(value)
    return f"{float(value):.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _listed(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return ", ".join(map(str, value))
    return str(value)


def _png(image: Figure | bytes | str | Path) -> bytes:
    if isinstance(image, bytes):
        png = image
    elif isinstance(image, str | Path):
        png = Path(image).read_bytes()
    else:
        buffer = io.BytesIO()
        image.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
        png = buffer.getvalue()
    if not png.startswith(_PNG):
        raise ValueError("A picture of a report is a matplotlib figure or a PNG (bytes or path); this is neither.")
    return png
