"""Hook of `make docs`: ```math blocks and $...$, as GitHub reads them, become MathML; no page fetches anything."""

from __future__ import annotations

import re
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor


def mathml(source: str, display: str = "inline") -> str:
    """LaTeX -> a MathML element.

    Raises:
        ValueError: a command or an alignment that latex2mathml does not know; it would pass it through as text.
    """
    result: str = convert(source, display=display)
    if re.search(r"<m\w+[^>]*>(\\|&<)", result):
        raise ValueError(f"latex2mathml cannot typeset: {source}")
    space = 'lspace="0.17em" rspace="0.17em"'  # around log, tanh, max ...
    return re.sub(r"<m[io]>([a-z]{2,})</m[io]>", rf"<mo {space}>\1</mo>", result)


def block(source: str, *_: Any, **__: Any) -> str:
    """A ```math block, as pymdownx.superfences calls its formatters."""
    return f"<p>{mathml(source, 'block')}</p>"


class Inline(InlineProcessor):
    """$...$ within a line; not a lone dollar sign, nor one in code."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element | str, int, int]:  # type: ignore[override]
        """Keep the element out of the way of later patterns."""
        return self.md.htmlStash.store(mathml(m.group(1))), m.start(0), m.end(0)


class Math(Extension):
    """Inline math, before backslashes and emphasis are read and after code spans."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the pattern."""
        md.inlinePatterns.register(Inline(r"(?<![\w$])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])", md), "math", 185)


def on_config(config: Any) -> Any:
    """Called by mkdocs."""
    fence = {"name": "math", "class": "math", "format": block}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    config.markdown_extensions.append(Math())
    return config
