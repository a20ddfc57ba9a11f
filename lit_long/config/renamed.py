"""Settings that have another name now. The old one works until the version named here, with a notice; then its row goes."""

from __future__ import annotations

import functools
import sys

import yaml

UNTIL = "0.3"
RENAMED = {  # dotted setting → the new last part of its name
    "trainer.bad_update": "on_bad_step",
}


def rename_key(key: str, where: str, above: str = "") -> str:
    """The dotted ``key`` by its present name, wherever it stands: in ``stages.NAME``, in the grid, in an option file.

    Args:
        where: the file or "command line", for the notice; empty for none.
        above: the dotted key of the group that ``key`` stands in.
    """
    path = f".{above}.{key}"
    for old, new in RENAMED.items():
        if path.endswith(f".{old}"):
            renamed = ".".join([*key.split(".")[:-1], new])
            if where:
                say_once(f"{where}: {old} is called {old.rpartition('.')[0]}.{new} now; the old name works until {UNTIL}")
            return renamed
    return key


def rename_nodes(node: yaml.Node, where: str, above: str = "", around: tuple[yaml.Node, ...] = ()) -> None:
    """`rename_key` for all keys of a YAML file, in place.

    Args:
        around: the groups and lists that ``node`` stands in.

    Raises:
        yaml.YAMLError: a setting by both of its names, or a group that an alias puts into itself.
    """
    if node in around:
        raise yaml.YAMLError(f"the alias of what begins in line {node.start_mark.line + 1} stands in it")
    if isinstance(node, yaml.SequenceNode):  # points of the grid
        for item in node.value:
            rename_nodes(item, where, above, (*around, node))
    elif isinstance(node, yaml.MappingNode):
        names = {key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            renamed = rename_key(key.value, where, above)
            if renamed != key.value and renamed in names:
                raise yaml.YAMLError(f"{key.value} and {renamed} are two names of one setting; leave out {key.value}")
            key.value = renamed
            rename_nodes(value, where, f"{above}.{renamed}", (*around, node))


@functools.cache
def say_once(notice: str) -> None:
    print(f"notice: {notice}", file=sys.stderr)
