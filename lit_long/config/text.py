"""YAML whose text settings are the text that was written.

YAML 1.1 reads 010 as 8, 12:30 as 750, ``no`` as false, and takes what follows `` #`` for a comment. Where the schema says text, none of that
happens; for all other types YAML's rules stay. On the command line a text is what was typed, in a list what stands between the commas: the
shell took the quotes. Quotes that are still there are YAML's.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf

from lit_long.config.renamed import rename_nodes

ESCAPES = "escapes"
# A text with line breaks in it, as templates and stop strings have: no shell makes one of \n, so it is done here, for what is typed without quotes
# of YAML's own. \t and \r, too; \\ is a backslash. Files have YAML's double quotes for that.
EscapedText = Annotated[str, ESCAPES]
ESCAPED = re.compile(r"\\([ntr\\])")
MEANT = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
ITEM = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|(?:\$\{[^}]*\}|[^,])*?)\s*(?:,|\Z)""", re.DOTALL)
OPTION_NAMES = ("option", "recipe")  # of a file, whatever stands around them
POINT_NAME = "name"
LIBYAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, eight times as fast, where PyYAML has it
NULL, TEXT, MERGE = (f"tag:yaml.org,2002:{name}" for name in ("null", "str", "merge"))


@dataclass(frozen=True)
class Axes:
    """The type of a grid: dotted settings of ``root()``, each with a list of values or one; an axis of another name has points with names."""

    root: Callable[[], type]


@dataclass(frozen=True)
class Axis:
    """The type of an axis whose setting is of type ``annotation``."""

    annotation: Any
    axes: Axes


@dataclass(frozen=True)
class NamedPoint:
    """The type of a point of an axis: a name, and dotted settings that go together."""

    axes: Axes


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass, ranges included; worked out once."""
    return get_type_hints(cls, include_extras=True)


@functools.cache
def read_types(cls: type) -> dict[str, Any]:
    """Like `field_types`; where a field is checked elsewhere (``metadata={"read_as": …}``), what it is made of."""
    read_as = {f.name: f.metadata["read_as"] for f in dataclasses.fields(cls) if "read_as" in f.metadata}
    return field_types(cls) | read_as


def bare(annotation: Any) -> tuple[Any, bool, tuple[Any, ...]]:
    """The type without ``| None`` and notes, whether None is allowed, and the notes."""
    optional, notes = False, ()
    while True:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            annotation, notes = arguments[0], notes + arguments[1:]
        elif origin in (Union, types.UnionType):
            optional = type(None) in arguments
            annotation = next(a for a in arguments if a is not type(None))
        else:
            return annotation, optional, notes


def type_at(annotation: Any, path: list[str]) -> Any:
    """The type of the setting that ``path`` leads to; Any where nobody knows. A dict of names and types is a group, too."""
    for depth, name in enumerate(path):
        annotation = bare(annotation)[0]
        if isinstance(annotation, Axes):
            root, rest = annotation.root(), path[depth:]
            return Axis(type_at(root, rest) if rest[0] in read_types(root) else str, annotation)
        if isinstance(annotation, Axis):
            annotation = Axis(type_at(annotation.annotation, [name]), annotation.axes)
        elif isinstance(annotation, NamedPoint):
            return str if name == POINT_NAME else type_at(annotation.axes.root(), path[depth:])
        elif name in OPTION_NAMES and (is_settings(annotation) or annotation == dict[str, Any]):
            return str
        elif isinstance(annotation, dict):
            annotation = annotation.get(name, Any)
        elif is_settings(annotation):
            annotation = read_types(annotation).get(name, Any)
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        elif annotation is not str:  # a dotted name in a group of texts
            return Any
    return annotation


def is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def is_group(kind: Any) -> bool:
    return is_settings(kind) or get_origin(kind) is dict


def read_node(content: str, annotation: Any, where: str = "", above: str = "") -> Any:
    """The plain values of a YAML file of this type. Raises yaml.YAMLError.

    Args:
        where, above: see `rename_key`; ``above`` is the group whose settings the file holds.
    """
    try:
        return read_with(LIBYAML, content, annotation, where, above)
    except (yaml.MarkedYAMLError, yaml.reader.ReaderError):  # of the parser, not of what it has read
        return read_with(yaml.SafeLoader, content, annotation, where, above)  # whose messages quote the line


def read_with(kind: Any, content: str, annotation: Any, where: str, above: str) -> Any:
    loader = kind(content)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        rename_nodes(node, where, above)
        keep_text(node, annotation, typed_in=False)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def read_word(value: str, annotation: Any, where: str = "", key: str = "") -> Any:
    """The value of ``key=value`` whose key has this type; ``where`` as in `read_node`. Raises yaml.YAMLError, or OmegaConf's errors."""
    kind, optional, notes = bare(annotation)
    if kind is str and not (optional and value in ("", "~", "null")):
        return unquoted(value, ESCAPES in notes)
    if get_origin(kind) is list and value.startswith("[") and value.endswith("]"):
        item, _, notes = bare(get_args(kind)[0])
        if item is str:
            return [unquoted(text, ESCAPES in notes) for text in items(value[1:-1], ESCAPES in notes)]
    node = yaml.compose(value, Loader=yaml.SafeLoader)
    if node is not None:
        rename_nodes(node, where, key)
        keep_text(node, annotation, typed_in=True)
        value = yaml.serialize(node, allow_unicode=True)
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)["value"]


def items(inner: str, escapes: bool) -> list[str]:
    """What stands between the commas. A line break that was typed in a text with escapes is a part of it."""
    inner = inner.replace("\n", "\\n") if escapes else inner
    found, at = [], 0
    while at < len(inner) and (match := ITEM.match(inner, at)):  # its last alternative takes anything up to a comma or the end
        found.append(match[1])
        at = match.end()
    return found if any(found) else []


def unquoted(text: str, escapes: bool) -> str:
    """A text as it was typed; one that is all in quotes as YAML reads these."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            node = None  # such as "one" and "two"
        if isinstance(node, yaml.ScalarNode) and node.style:
            return unescaped(node.value) if escapes and text[0] == "'" else node.value
    return unescaped(text) if escapes else text


def unescaped(text: str) -> str:
    return ESCAPED.sub(lambda match: MEANT[match[1]], text)


def keep_text(node: yaml.Node, annotation: Any, typed_in: bool, seen: set[int] | None = None) -> None:
    """Let scalars of ``node`` be text where ``annotation`` says so; and {code:1}, which YAML takes for one key, be {code: 1}.

    Args:
        typed_in: on the command line, where ``null`` is a text, too.

    Raises:
        yaml.YAMLError: a key that stands twice in one group.
    """
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    kind, optional, notes = bare(annotation)
    if isinstance(node, yaml.ScalarNode):
        wanted = bare(kind.annotation)[0] if isinstance(kind, Axis) else kind
        is_null = node.tag == NULL and (not typed_in or optional or not node.value)
        if (wanted is str or is_group(wanted)) and not node.style and not is_null:  # for a group an option is named
            node.tag = TEXT
            node.value = unescaped(node.value) if typed_in and ESCAPES in notes else node.value
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            if isinstance(kind, Axis):
                own: Any = NamedPoint(kind.axes) if isinstance(item, yaml.MappingNode) else kind
            else:
                own = next(iter(get_args(kind)[number:] if get_origin(kind) is tuple else get_args(kind)), Any)
            keep_text(item, own, typed_in, seen)
    elif isinstance(node, yaml.MappingNode):
        node.value = [with_space(key, value) if node.flow_style else (key, value) for key, value in node.value]
        refuse_twice((key.value, key) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if get_origin(kind) is dict and isinstance(key, yaml.ScalarNode) and key.tag not in (NULL, MERGE):
                key.tag = TEXT
            keep_text(value, type_at(kind, name.split(".")), typed_in, seen)
        if takes_dotted_keys(kind):
            refuse_twice(dotted_keys(node))


def takes_dotted_keys(kind: Any) -> bool:
    """Whether ``{meta.language: en}`` and ``{meta: {language: en}}`` are the same in a group of this type."""
    return isinstance(kind, NamedPoint) or (get_origin(kind) is dict and bare(get_args(kind)[1])[0] in (str, int, float))


def dotted_keys(
    node: yaml.MappingNode, prefix: str = "", above: tuple[yaml.Node, ...] = ()
) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """The settings of a group by their dotted keys, however they are nested; ``position.option`` is ``position``."""
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            if value not in above:  # else it holds itself, which is refused elsewhere
                yield from dotted_keys(value, f"{prefix}{key.value}.", (*above, value))
        else:
            yield f"{prefix}{key.value}".removesuffix(".option"), key


def refuse_twice(keys: Iterable[tuple[str, yaml.ScalarNode]]) -> None:
    """Raise yaml.YAMLError for a key that stands twice in one group, of which the last would be taken."""
    lines: dict[str, int] = {}
    for name, key in keys:
        line = key.start_mark.line + 1
        if name in lines and key.tag != MERGE:
            first, last = sorted((lines[name], line))
            raise yaml.YAMLError(
                f"{name} is there twice ({f'lines {first} and {last}' if first < last else f'line {line}'}); leave one out"
            )
        lines[name] = line


def with_space(key: yaml.Node, value: yaml.Node) -> tuple[yaml.Node, yaml.Node]:
    """``{code:1}`` as ``{code: 1}``."""
    one_word = isinstance(key, yaml.ScalarNode) and not key.style and isinstance(value, yaml.ScalarNode)
    if not one_word or value.value or value.style or value.tag != NULL or not 0 < key.value.find(":") < len(key.value) - 1:
        return key, value
    name, _, rest = key.value.partition(":")
    named = yaml.compose(name, Loader=yaml.SafeLoader)
    named.start_mark = key.start_mark
    return named, yaml.compose(rest, Loader=yaml.SafeLoader)
