"""Earlier names of config keys and values: configs, checkpoints and weights that use them can still be read."""

from __future__ import annotations

from typing import Any

RENAMED_KEYS: dict[tuple[str, str], tuple[str, str]] = {
    ("augment", "own_boxes"): ("method", "roi_source"),
    ("method", "mode"): ("method", "student_targets"),
    ("method", "slow_teacher"): ("method", "ema_teacher"),
    ("data", "ruler"): ("data", "test"),
}
"""(section, earlier key) -> (section, key)."""

RENAMED_VALUES: dict[tuple[str, str], list[tuple[Any, str]]] = {
    ("augment", "own_boxes"): [(True, "predicted"), (False, "labels")],
    ("method", "mode"): [("paper", "teacher"), ("best", "teacher_and_pseudo")],
    ("method", "gtm_measure"): [("pace", "loss_slope")],
}
"""(section, key) -> (earlier value, value) each; the other values of a renamed key are errors."""


def rename(raw: Any, replace: bool = False) -> Any:
    """A raw training config with today's names; the argument itself stays as it is.

    Args:
        raw: as read from a file; what is not a mapping of mappings is left to the validation.
        replace: an earlier key replaces its new form (a command line's value over a file's) instead of being an error.

    Raises:
        ValueError: a key is given under both of its names, or an earlier key has a value that it never had.
    """
    if not isinstance(raw, dict):
        return raw
    result = {name: dict(section) if isinstance(section, dict) else section for name, section in raw.items()}
    for name, key in [*RENAMED_KEYS, *RENAMED_VALUES]:
        section = result.get(name)
        if not isinstance(section, dict) or key not in section:
            continue
        new_name, new_key = RENAMED_KEYS.get((name, key), (name, key))
        moved = (new_name, new_key) != (name, key)
        value = _renamed(name, key, section[key], strict=moved)
        del section[key]
        target = result.setdefault(new_name, {})
        if not isinstance(target, dict):
            continue
        if moved and not replace and new_key in target:
            raise ValueError(f"{name}.{key} is the earlier name of {new_name}.{new_key}; give only the latter")
        target[new_key] = value
    return result


def _renamed(name: str, key: str, value: Any, strict: bool) -> Any:
    pairs = RENAMED_VALUES.get((name, key))
    if pairs is None:
        return value
    for old, new in pairs:
        if value == old:
            return new
    if strict:
        new_name, new_key = RENAMED_KEYS[name, key]
        known = " or ".join(f"{new} (earlier {str(old).lower()})" for old, new in pairs)
        raise ValueError(f"{name}.{key} is now {new_name}.{new_key}: {known}; got {str(value)[:80]!r}")
    return value
