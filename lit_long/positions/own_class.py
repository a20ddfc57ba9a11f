"""Classes of the user's own, ``module:Class``: imported, checked and tried before anything runs, so that a bug in one is told with its file and line.

What goes wrong in their code becomes a `UserError`; what goes wrong in ours alone stays what it is. Nothing here imports torch, so a ``rotation`` is not
tried.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import operator
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_long.config import UserError, nearest
from lit_long.config.text import field_types
from lit_long.positions.encoder import PositionalEncoder
from lit_long.positions.transforms import PositionTransform

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
REMEDIES = {  # part of what Python says → what to do
    "cannot inherit non-frozen dataclass": "write @dataclass(frozen=True)",
    "non-default argument": "give the field a default, or write @dataclass(frozen=True, kw_only=True)",
    "cannot assign to field": "a setting stays as it was given: work out other values in a method",
}
ARGUMENTS = {"score_slopes": "heads"}  # of a method that is tried; length of the others


def is_own(name: str) -> bool:
    """Whether a scheme, transform or form is named as ``module:Class``."""
    return ":" in name


def import_class(base: type, name: str, label: str) -> type:
    """The class ``module:Class``, derived from ``base``. ``label`` says in errors which setting names it."""
    module, _, attribute = name.partition(":")
    if not all([*module.split("."), attribute]):
        raise UserError(f"{label} must be module:Class, such as bend:Bend for class Bend in bend.py")
    imported = call(f"{label} cannot be imported", module, importlib.import_module, module)
    found = call(label, module, getattr, imported, attribute, None)
    if found is None:
        classes = [key for key, value in vars(imported).items() if derives(value, base) and value.__module__ == module]
        near = nearest(attribute, classes) if classes else ""
        raise UserError(f"{label} cannot be imported: module {module!r} has no class {attribute!r}{near}")
    if not derives(found, base):
        raise UserError(f"{label} must be a dataclass derived from {base.__name__}")
    for cls in found.__mro__:
        if derives(cls, base) and cls.__module__.partition(".")[0] != PACKAGE.name:
            check_fields(cls, base, label)
    call(f"{label}, types of its fields", module, field_types, found)
    return found


def derives(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def check_fields(cls: type, base: type, label: str) -> None:
    """Raise UserError where ``cls`` has fields that are not taken for any. Without fields of its own it may do without a decorator."""
    annotations = call(label, cls.__module__, inspect.get_annotations, cls)
    fields = [name for name, kind in annotations.items() if "ClassVar" not in str(kind)]
    if fields and "__dataclass_fields__" not in vars(cls):
        raise UserError(
            f"{label} must be a dataclass derived from {base.__name__}: write @dataclass(frozen=True) above class {cls.__name__}, so that "
            f"{', '.join(fields)} can be set"
        )
    inherited = {name for parent in cls.__mro__[1:] for name in getattr(parent, "__dataclass_fields__", {})}
    written = {name for name, value in vars(cls).items() if not inspect.ismemberdescriptor(value)}  # not those of slots=True
    if untyped := sorted(inherited & written - set(annotations)):
        raise UserError(
            f"{label}: {untyped[0]} in class {cls.__name__} has no type, so that it changes no setting: write {untyped[0]}: float = … (or its "
            f"other type) below @dataclass(frozen=True)"
        )


def construct(cls: type, values: dict[str, Any], label: str) -> Any:
    """An instance of the user's class from checked values."""
    for name in sorted(cls.__abstractmethods__):
        near = difflib.get_close_matches(name, vars(cls), n=1)
        raise UserError(f"{label} lacks the method {name!r}{f'; is {near[0]!r} meant to be it?' if near else ''}")
    return call(label, cls.__module__, cls, **values)


def check_encoder(encoder: PositionalEncoder, length: int, label: str) -> None:
    """Call what the user's encoder says without torch, for a context of ``length`` tokens, and raise UserError for what no model could use."""
    cls = type(encoder)
    check_frequencies(encoder, length, label, needed=all(is_ours(method) for method in (cls.rotation, cls.cos_sin)))
    factor = ask(encoder, "attention_factor", length, label)
    if not is_finite(factor):
        raise UserError(f"{label}: attention_factor returned {short(factor)}, wanted a finite number")
    slopes = ask(encoder, "score_slopes", 1, label)
    if slopes is not None and not (is_list(slopes) and all(is_finite(slope) for slope in slopes)):
        raise UserError(
            f"{label}: score_slopes returned {short(slopes)}, wanted None or a list of finite numbers, one for each head"
        )


def check_frequencies(encoder: PositionalEncoder, length: int, label: str, needed: bool = True) -> None:
    """Raise UserError unless ``inverse_frequencies`` returns a finite number for each pair. Where they are not ``needed``, as where ``rotation`` is the
    user's own, it may also return nothing, or raise NotImplementedError."""
    try:
        found = ask(encoder, "inverse_frequencies", length, label)
    except UserError as error:
        if needed or not isinstance(error.__cause__, NotImplementedError):
            raise
        return
    pairs = encoder.head_dim // 2
    wanted = f"wanted {pairs}, one for each rotated pair"
    if found is None or not is_list(found):
        if not needed and found is None:
            return
        forgotten = "; is its return missing?" if found is None else ""
        raise UserError(f"{label}: inverse_frequencies returned {short(found)}, not a list of numbers; {wanted}{forgotten}")
    if not needed and len(found) == 0:
        return
    if len(found) != pairs:
        raise UserError(f"{label}: inverse_frequencies returned {len(found)} numbers, {wanted}")
    for pair, frequency in enumerate(found):
        if not is_finite(frequency):
            raise UserError(f"{label}: inverse_frequencies returned {short(frequency)} for pair {pair}, wanted a finite number")


def check_reach(transform: PositionTransform, label: str) -> None:
    """Raise UserError unless the ``reach`` of the user's transform is a number of tokens."""
    reach = ask(transform, "reach", None, label)
    if not is_finite(reach) or reach < 1:
        raise UserError(f"{label}: reach is {short(reach)}, wanted a number of tokens")


def ask(instance: Any, name: str, argument: int | None, label: str) -> Any:
    """What a method of the user's class returns, or (without an argument) what a property is."""
    get = operator.attrgetter(name) if argument is None else operator.methodcaller(name, argument)
    called = "" if argument is None else f"{name}({ARGUMENTS.get(name, 'length')})"
    return call(label, type(instance).__module__, get, instance, method=getattr(type(instance), name), called=called)


def call(label: str, module: str, function: Callable, *arguments: Any, method: Any = None, called: str = "", **named: Any) -> Any:
    """What ``function`` returns; what it raises in the user's code is told as a UserError, with the last line of theirs.

    Args:
        module: the module that holds the user's class.
        method: the user's, where ``function`` only calls it.
        called: how it is called, for when it takes other arguments.
    """
    try:
        return function(*arguments, **named)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]  # below this one
        place = own_line(error, module)
        in_ours = bool(frames) and within(frames[-1].filename, PACKAGE) and not isinstance(error, SyntaxError)
        if in_ours and not place:
            raise
        hint = remedy(error, place)
        if not frames:  # the call itself failed: the arguments do not fit
            place = place or line_of(method or getattr(function, "__init__", None))
            hint = hint or (f"it is called as {called}" if called and isinstance(error, TypeError) else "")
        if in_ours:
            place += f"; raised in {shown(frames[-1].filename)}, line {frames[-1].lineno}"
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        what = f"{type(error).__name__}: {said}" if said else type(error).__name__
        raise UserError(f"{label}: {what}{f' ({place})' if place else ''}{f'; {hint}' if hint else ''}") from error


def own_line(error: BaseException, module: str) -> str:
    """The last line of the user's code that an error came through, "" for none."""
    if isinstance(error, SyntaxError) and error.filename and is_users(error.filename, ""):
        return f"{shown(error.filename)}, line {error.lineno}"
    top, found = module.partition(".")[0], ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code, name = frame.f_code, str(frame.f_globals.get("__name__", ""))
        if is_users(code.co_filename, name if name.partition(".")[0] == top else ""):
            function = code.co_qualname.partition(".<locals>")[0].rpartition(".")[2]
            inside = "" if function.startswith("<") else f", in {function}"
            found = f"{shown(code.co_filename)}, line {line}{inside}"
    return found


def line_of(function: Any) -> str:
    """Where the user's function begins; "" where it is not theirs."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return f"{shown(code.co_filename)}, line {code.co_firstlineno}" if code and is_users(code.co_filename, "") else ""


def remedy(error: BaseException, place: str) -> str:
    """What to do about an error that came through ``place``, "" where it says that itself."""
    if isinstance(error, SystemExit):
        return "it ends the program: put what is only for a script below if __name__ == '__main__':"
    if isinstance(error, ModuleNotFoundError) and not place:
        return "start the command in the folder that holds the file, or add that folder to PYTHONPATH"
    if isinstance(error, AttributeError) and error.name and error.obj is not None:
        near = difflib.get_close_matches(error.name, [name for name in dir(error.obj) if not name.startswith("_")], n=1)
        return f"did you mean {near[0]!r}?" if near else ""
    return next((advice for part, advice in REMEDIES.items() if part in str(error)), "")


def is_users(file: str, module: str) -> bool:
    """Whether the file is neither ours nor a library's, unless that library is the ``module`` with the user's class."""
    if file.startswith("<") or within(file, PACKAGE):
        return False
    return bool(module) or not any(within(file, library) for library in LIBRARIES)


def within(file: str, folder: Path) -> bool:
    return not file.startswith("<") and Path(file).resolve().is_relative_to(folder)


def is_ours(method: Any) -> bool:
    return str(getattr(method, "__module__", "")).partition(".")[0] == PACKAGE.name


def shown(file: str) -> str:
    """A file as the user would name it from here."""
    path, here = Path(file).resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_list(value: Any) -> bool:
    """Whether torch would make a tensor of it: a list, a tuple, an array."""
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes, dict, set)) and getattr(value, "ndim", 1) == 1


def is_finite(value: Any) -> bool:
    try:
        return not getattr(value, "ndim", 0) and math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False
