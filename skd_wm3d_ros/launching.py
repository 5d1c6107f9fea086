"""What the launch files decide, without `launch` and without torch: ``ros2 launch`` may run in a Python that has none.

The actions themselves are in :mod:`skd_wm3d_ros.launch_actions`, the arguments in
:mod:`skd_wm3d_ros.launch_arguments`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from skd_core.errors import UserError
from skd_core.yaml_files import read_yaml

PACKAGE = "skd_wm3d_ros"
BOOLEANS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}
RESPAWN_DELAY = 2.0  # seconds
ENDED = (0, 2)  # exit statuses of a node that was told to end, and of one that would end in the same way again
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


class ArgumentError(ValueError):
    """A launch argument that cannot be; one line that names it and says what it may be."""


# -- how the text of an argument is read ------------------------------------------------------------------------------
def boolean(text: str) -> bool:
    """As ROS's parameter files and launch conditions have it, in any case: ``True``, ``false``, ``1``, ``off``."""
    try:
        return BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError("true or false") from None


def listed(text: str) -> list[str]:
    """Items with commas between, with or without brackets around."""
    return [item.strip().strip("'\"") for item in text.strip().strip("[]").split(",")]


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


def parse_integers(text: str) -> list[int]:
    """Whole numbers with commas between."""
    try:
        return [int(item) for item in listed(text)]
    except ValueError:
        raise ValueError("whole numbers with commas between") from None


@dataclass(frozen=True)
class Argument:
    """One launch argument.

    Attributes:
        name: of the argument.
        description: what it does; one sentence.
        default: its text; None = it must be given.
        choices: the texts allowed; any if there are none.
        read: its text -> its value; raises ValueError with what is allowed.
        parameter: whether the node has a parameter of that name, which is set where the argument is not empty.
        option: of the command line that it becomes; "" = none.
    """

    name: str
    description: str
    default: str | None = ""
    choices: tuple[str, ...] = ()
    read: Callable[[str], Any] = str
    parameter: bool = False
    option: str = ""

    def value(self, given: Mapping[str, str]) -> Any:
        """Its value; None where its text is empty.

        Args:
            given: the texts of all arguments, by name.

        Raises:
            ArgumentError: the text cannot be read.
        """
        text = given.get(self.name, self.default) or ""
        if not text.strip():
            return None
        try:
            return self.read(text)
        except ValueError as allowed:
            raise ArgumentError(f"{self.name} must be {allowed}, got '{text}'") from None


def values(arguments: Iterable[Argument], given: Mapping[str, str]) -> dict[str, Any]:
    """Value of each argument that is not empty. Raises :class:`ArgumentError`."""
    found = {argument.name: argument.value(given) for argument in arguments}
    return {name: value for name, value in found.items() if value is not None}


def node_parameters(arguments: Iterable[Argument], given: Mapping[str, str]) -> dict[str, Any]:
    """Parameters of the node that arguments set; those left empty are as in the parameter file."""
    return values([argument for argument in arguments if argument.parameter], given)


# -- files and variables ----------------------------------------------------------------------------------------------
def existing(name: str, path: str) -> str:
    """A path, if there is a file: launch itself would only warn, and start the node with its defaults.

    Raises:
        ArgumentError: there is none; the message names the argument.
    """
    if not os.path.isfile(path):
        raise ArgumentError(f"{name} '{path}': no such file")
    return path


def file_parameters(path: str, node: str) -> dict[str, Any]:
    """What a parameter file says of a node, as far as a launch file must know it; {} where it cannot be read.

    Args:
        path: of the parameter file. What is wrong with it is said by the node.
        node: its name with its namespace, such as /front/detector; ``/**`` and ``*`` in the file match as in ROS.
    """
    try:
        content = read_yaml(path)
    except UserError:
        return {}
    wild: dict[str, Any] = {}
    exact: dict[str, Any] = {}  # goes before wildcards, wherever it stands
    for name, found in _nodes(content):
        if name == node:
            exact |= found
        elif re.fullmatch(_pattern(name), node):
            wild |= found
    return wild | exact


def absolute(*names: str) -> str:
    """A topic's or node's full name: namespaces from the outermost on, then the name; one that begins with a slash
    starts anew."""
    path = ""
    for name in names:
        path = name.rstrip("/") if name.startswith("/") else f"{path}/{name.strip('/')}" if name.strip("/") else path
    return path or "/"


def _nodes(content: Any, prefix: str = "") -> Iterable[tuple[str, dict[str, Any]]]:
    """Names and parameters of the nodes in a parameter file, whose namespaces may be nested."""
    for key, inner in content.items() if isinstance(content, dict) else ():
        if key == "ros__parameters" and isinstance(inner, dict):
            yield prefix or "/", inner
        elif isinstance(inner, dict):
            yield from _nodes(inner, f"{prefix}/{str(key).strip('/')}")


def _pattern(name: str) -> str:
    """Regular expression of the nodes that a name with wildcards means: ``*`` one token, ``**`` any number."""
    tokens = {"**": "(/[^/]+)*", "*": "/[^/]+"}
    return "".join(tokens.get(token, "/" + re.escape(token)) for token in name.strip("/").split("/"))


def sets_dds_profile(environment: Mapping[str, str]) -> bool:
    """Whether Fast DDS's profile for images is to be set: not beside one of the user's, not under another middleware.

    Images do not fit the default shared-memory segment of Fast DDS, which is ROS's own choice where
    RMW_IMPLEMENTATION names none.
    """
    if any(environment.get(name) for name in PROFILE_VARIABLES):
        return False
    return (environment.get("RMW_IMPLEMENTATION") or "rmw_fastrtps_cpp").startswith("rmw_fastrtps")


def is_respawned(respawn: bool, status: int) -> bool:
    """Whether a node that left with an exit status is started again."""
    return respawn and status not in ENDED
