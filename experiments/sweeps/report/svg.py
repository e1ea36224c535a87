"""A figure as SVG that stands inside a page: no namespace, no names that another figure has."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INNER = re.compile(r'<svg\b[^>]*\bviewBox="([^"]*)"[^>]*>(.*)</svg>', re.S)
# Descriptions of the file, which name its schema's address; a style that would be all the page's.
_OUTER = re.compile(r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", re.S)
_NAMES = re.compile(r'(\bid="|\bhref="#|url\(#)')
_PATHS = re.compile(r'\bd="[^"]*"')
_DIGITS = re.compile(r"(\.\d\d)\d+")
# Of a path, beyond hundredths of a point.


def inline(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element, as wide as what it stands in; text stays text.

    Args:
        figure: what to draw.
        name: put before every name in it; of letters, digits and hyphens, one a figure.
    """
    from matplotlib import rc_context

    written = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True)
    found = _INNER.search(written.getvalue())
    assert found is not None, "matplotlib writes one svg element with a viewBox"
    view, content = found[1], _OUTER.sub("", found[2]).replace("xlink:href", "href")
    content = _PATHS.sub(lambda path: _DIGITS.sub(r"\1", path[0]), content)
    content = _NAMES.sub(rf"\g<1>{name}-", content).strip()
    return f'<svg viewBox="{view}">{content}</svg>'
