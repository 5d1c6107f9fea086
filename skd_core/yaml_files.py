"""The one YAML reader: plain data of bounded size and depth, every key once; anything else is a :class:`UserError`.

PyYAML's safe loader runs no code, but it takes the last of two equal keys without a word, leaves bad dates and numbers
to Python's own exceptions, and lets a few aliases stand for gigabytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from skd_core.errors import UserError
from skd_core.files import read_text

MAX_BYTES = 4_000_000
MAX_VALUES = 200_000
"""With what aliases stand for counted each time."""
MAX_DEPTH = 40

_FAULTS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)
"""PyYAML's own, and what its constructors raise for text such as ``!!int x``."""


class _Loader(yaml.SafeLoader):
    """Counts while it composes, so that nothing is built of what is refused. A date stays text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}  # values in a node, by its id

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"nested more than {MAX_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias:
            if id(node) not in self._sizes:
                raise yaml.MarkedYAMLError(None, None, "an alias stands for what it is in", mark)
        else:
            self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in _parts(node))
        if self._sizes[id(node)] > MAX_VALUES:
            raise yaml.MarkedYAMLError(None, None, f"more than {MAX_VALUES} values", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(None, None, f"key '{key.value[:60]}' is given twice", key.start_mark)
                seen.add((key.tag, key.value))
        return node


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
    for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parts(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def load_yaml(text: str, name: str, *, first: bool = False) -> Any:
    """The data in a YAML text.

    Args:
        name: what errors begin with, such as the file's path.
        first: take the first of several documents; without it there may be only one.

    Raises:
        UserError: no YAML, a key twice in one mapping, or more than :data:`MAX_BYTES`, :data:`MAX_VALUES` or
            :data:`MAX_DEPTH`.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{name}: too long for a YAML file of settings ({len(text)} characters)")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_node() if first and loader.check_node() else None
            if not first:
                node = loader.get_single_node()
            return None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except _FAULTS as error:
        raise UserError(f"{name}: not valid YAML: {_words(error)}") from None


def read_yaml(path: str | Path, *, first: bool = False) -> Any:
    """The data in a YAML file, see :func:`load_yaml`.

    Raises:
        UserError: no such file, not a regular file, not UTF-8, or see :func:`load_yaml`.
    """
    text = read_text(path, MAX_BYTES, "YAML file")
    return load_yaml(text, str(path), first=first)


def _words(error: Exception) -> str:
    """What is wrong and where, in one short line."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        return f"{', '.join(part for part in (error.context, error.problem) if part)}{where}"
    said = " ".join(str(error).split()) or type(error).__name__
    return said if isinstance(error, (yaml.YAMLError, ValueError)) else f"a value is not what its tag says ({said})"
