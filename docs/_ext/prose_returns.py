"""Show the section ``Returns`` of a docstring as the prose it is.

Napoleon takes the first line of it for a type. Here types stand in the signature, and autodoc adds that of the result.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from sphinx.ext.napoleon.docstring import NumpyDocstring

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def parse_returns(self: NumpyDocstring, _section: str) -> list[str]:
    """The field ``:returns:`` with the section as its body."""
    lines = textwrap.dedent("\n".join(self._consume_to_next_section())).strip().splitlines()
    return [":returns:", *textwrap.indent("\n".join(lines), "    ").splitlines(), ""]


def setup(_app: Sphinx) -> dict[str, bool]:
    """Replace the method; napoleon has no option for it."""
    NumpyDocstring._parse_returns_section = parse_returns
    return {"parallel_read_safe": True, "parallel_write_safe": True}
