"""What a command says, piece by piece and before it is put together (compose.py): option files, the experiment, ``key=value`` words.

An experiment may say how it differs at each of its scales: the same table on a laptop, on one GPU, and as the paper ran it.

    scale: laptop                  the one that runs when no other is asked for
    scales:
      laptop: {model: tiny, …}     settings on top of the experiment's own; `scale=paper` picks others
      paper: {model: llama2-7b, …}

A scale says what differs: model, tokens, lengths, grid. Stages and what they are for stand once, in the experiment. A stage, or an axis of the grid,
that a scale sets to null is not there at that scale.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_long.config.grid import as_list, flat_axes
from lit_long.config.ranges import Choice
from lit_long.config.renamed import rename_key
from lit_long.config.schema import SharedConfig, StageConfig, SweepConfig
from lit_long.config.text import bare, field_types, read_node, read_types, read_word, type_at
from lit_long.config.typed import UserError, check, check_path, nearest

PRETRAINED = "pretrained"  # the position option that stands for whatever model.init was trained with
CPU_ONLY = "alibi"  # the position option that GPUs do not compute
DEFAULT_OPTIONS = {
    "model": "tiny",
    "position": "rope",
    "layers": "uniform",
    "data": "builtin",
    "curriculum": "constant",
    "adapter": "none",
    "optim": "adamw",
    "trainer": "cpu",
    "launcher": "local",
    "tracking": "local",
}
COMMAND_LINE = "command line"
PACKAGE = Path(__file__).resolve().parents[1]
TAKEN = ("stages", "submitit", "theory", "evaluate", "instruct")  # names below runs/, or of experiments in the record
SCALE, SCALES = "scale", "scales"
SHARED = [f.name for f in dataclasses.fields(SharedConfig)]
THOUSANDS = re.compile(r"[0-9]{1,3}(,[0-9]{3})+")  # 1,000,000 is meant to be one number


@dataclass
class Command:
    """What one command says, before it is put together."""

    name: str
    file: Path
    experiment: dict[str, Any]
    cli: dict[str, Any]


def project_root() -> Path:
    """The checkout that this package lies in, or the working directory when it is installed as a wheel."""
    checkout = PACKAGE.parent
    return checkout if (checkout / "pyproject.toml").is_file() and (checkout / "configs").is_dir() else Path.cwd()


def folders(kind: str) -> list[Path]:
    """Where ``configs`` or ``experiments`` are looked up: the user's own first, then those that came with the package."""
    return [Path.cwd() / kind, PACKAGE.parent / kind, PACKAGE / "shipped" / kind]


def find_file(folder: str, name: str, key: str) -> Path:
    """The YAML file ``folder/name.yaml``, or the file that ``name`` is the path of, or a UserError that names the nearest existing one."""
    if is_path := name.endswith((".yaml", ".yml")):
        check_path(name, f"{key}={name}", "the file")
        if (file := Path(name).expanduser()).is_file():
            return file
    kind, _, rest = folder.partition("/")
    places = [place / rest for place in folders(kind)]
    for place in places:
        if (place / f"{name}.yaml").is_file():
            return place / f"{name}.yaml"
    known = sorted({file.stem for place in places for file in place.glob("*.yaml")})
    missing = f"file {name}" if is_path else f"{folder}/{name}.yaml"
    raise UserError(f"{key}={name}: there is no {missing}{nearest(Path(name).stem if is_path else name, known)}")


def option_names(group: str) -> list[str]:
    """Names of all option files of a group that run by themselves, and anywhere: no value is ``???``, for the user to give, or of model.init, or
    ``CPU_ONLY``."""
    names = {file.stem for place in folders("configs") for file in (place / group).glob("*.yaml")}
    contents = {name: read_yaml(find_file(f"configs/{group}", name, group), group_type(group), group).values() for name in names}
    return sorted(name for name, values in contents.items() if not any(own in values for own in (MISSING, PRETRAINED, CPU_ONLY)))


def group_type(group: str) -> Any:
    """The type of the settings of an option file."""
    return type_at(SweepConfig, [group])


def read_yaml(path: Path, annotation: Any, group: str = "") -> dict[str, Any]:
    """The plain values of a file of settings of this type: text as it is written, the rest as YAML reads it (text.py).

    Args:
        group: of which it is an option file.
    """
    try:
        content = read_node(path.read_text(encoding="utf-8"), annotation, str(path), group)
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: the 30th of February
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content or {}, dict):
        raise UserError(f"{path}: must hold key: value lines, not {type(content).__name__}")
    return content or {}


def parse_words(argv: list[str], settings: type, **groups: Any) -> dict[str, Any]:
    """``key=value`` words as nested plain values, not yet checked: a text as it was typed, the rest as YAML reads it (text.py).

    Args:
        settings: the dataclass that the words are settings of; ``groups``: types of those that it leaves open, or has not.

    Raises:
        UserError: a word of another form.
    """
    types, said = read_types(settings) | groups, OmegaConf.create()
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or word.startswith("-"):
            raise UserError(f"{COMMAND_LINE}: {word!r} is not of the form key=value, such as model.n_layers=6 (see --help)")
        try:
            key = rename_key(key, COMMAND_LINE)
            OmegaConf.update(said, key, read_word(value, type_at(types, key.split(".")), COMMAND_LINE, key))
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:  # the last two: both a list and a group
            raise UserError(f"{COMMAND_LINE}: {word!r} cannot be read: {error}") from None
    return OmegaConf.to_container(said, resolve=False)


def read_command(argv: list[str]) -> Command:
    """Parse ``key=value`` words and read the experiment they name (default: position_tiny)."""
    words = [normalize(word) for word in argv]
    for word in words:
        refuse_several(word)
    cli = with_flat_grid(parse_words(words, SweepConfig), COMMAND_LINE)
    name = str(cli.pop("experiment", SweepConfig.experiment))
    file = find_file("experiments", name, "experiment")
    if file.stem in TAKEN:
        raise UserError(
            f"{file}: no experiment can be called {file.stem}: lit-long keeps something else by that name; rename the file"
        )
    types = read_types(SweepConfig) | {SCALES: dict[str, SweepConfig]}
    experiment = with_flat_grid(read_yaml(file, types), str(file))
    return Command(file.stem, file, with_recipes(at_scale(experiment, cli.pop(SCALE, None), file), file), cli)


def with_flat_grid(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings, with the axes of their grid and of their scales by their dotted keys."""
    scales = settings.get(SCALES)
    for one in (settings, *(scales.values() if isinstance(scales, dict) else ())):
        if isinstance(one, dict) and "grid" in one:
            one["grid"] = flat_axes(one["grid"], where)
    return settings


def with_recipes(experiment: dict[str, Any], file: Path) -> dict[str, Any]:
    """The experiment with its stages' recipes written out: ``base: {recipe: NAME}`` stands for experiments/bases/NAME.yaml and what is said beside."""
    stages = experiment.get("stages")
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if isinstance(stage, dict) and "recipe" in stage:
            recipe = find_file("experiments/bases", str(stage.pop("recipe")), f"{file}: stages.{name}.recipe")
            settings = read_yaml(recipe, StageConfig)
            merge(settings, stage)
            stages[name] = settings
    return experiment


def normalize(word: str) -> str:
    """``position=abf`` as ``position.option=abf``, so that ``position.base=…`` can stand beside it; so in the grid."""
    key, equals, value = word.partition("=")
    path = key.removeprefix("grid.").split(".") if equals else [""]
    picks_option = path[-1] in DEFAULT_OPTIONS and (len(path) == 1 or (path[0] == "stages" and len(path) == 3))
    return f"{key}.option={value}" if picks_option and not value.startswith("{") else word


def refuse_several(word: str) -> None:
    """Raise UserError for a normalized word with several values of what has one (``seed=[0,1]``), and for values of an axis that are no list."""
    key, _, value = word.partition("=")
    setting = key.removeprefix("grid.")
    is_list, in_grid = value.startswith("["), setting != key
    if (in_grid and is_list) or not (is_list or "," in value) or not has_one_value(setting.split("."), value):
        return
    setting = setting.removesuffix(".option")
    axis = f"grid.{setting}={as_list(value)}"
    if in_grid:
        raise UserError(f"{COMMAND_LINE}: grid.{setting}={value}: several values are a list: {axis}")
    raise UserError(f"{COMMAND_LINE}: {setting}={value}: must be one value; {axis} makes a variant of each")


def has_one_value(path: list[str], several: str) -> bool:
    """Whether a stage's setting can only have one value, which ``several`` is not."""
    if "trainer" in (path[0], *path[2:3]):  # says how a stage runs, which makes no variants
        return False
    if path[0] not in (*SHARED, "stages") or several.startswith("{") or "${" in several or THOUSANDS.fullmatch(several):
        return False
    if path[-1] == "option":
        is_file = (place / path[-2] / f"{several}.yaml" for place in folders("configs"))
        return Path(several).suffix not in (".yaml", ".yml") and not any(file.is_file() for file in is_file)
    kind, _, notes = bare(type_at(read_types(SweepConfig), path))
    return kind in (int, float, bool) or any(isinstance(note, Choice) for note in notes)


def read_option(group: str, name: str, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """An option file's settings, on top of those of another option of the group if it names one (``option: builtin``)."""
    if name in below:
        raise UserError(f"configs/{group}: the options {' → '.join([*below, name])} stand on each other")
    file = find_file(f"configs/{group}", name, group)
    content = read_yaml(file, group_type(group), group)
    beneath = content.pop("option", None)
    check(SweepConfig, {group: content}, str(file))
    if group not in SHARED:
        refuse_references({group: content}, str(file))
    settings = read_option(group, str(beneath), (*below, name)) if beneath else {}
    merge(settings, content)
    return settings


def refuse_references(settings: dict[str, Any], where: str) -> None:
    """Raise UserError for ``${…}`` in place of a number, say, of the sweep itself: only in stages are they resolved. Texts may hold them (shell lines)."""
    types = field_types(SweepConfig)
    for key, value in settings.items():
        if key not in (*SHARED, "stages", "grid", "exclude") and (found := next(references(types[key], value, key), "")):
            raise UserError(f"{where}: {found}: only settings of stages can refer to others; write the value itself")


def references(annotation: Any, value: Any, key: str) -> Iterator[str]:
    """``key=value`` of all that should be no text and refers to another setting."""
    kind, arguments = bare(annotation)[0], get_args(bare(annotation)[0])
    if isinstance(value, str) and "${" in value and kind not in (str, Any):
        yield f"{key}={value}"
    elif isinstance(value, dict):
        types = field_types(kind) if dataclasses.is_dataclass(kind) else {}
        for name, one in value.items():
            yield from references(types.get(name, arguments[-1] if arguments else kind), one, f"{key}.{name}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from references(arguments[0] if arguments else kind, one, f"{key}[{number}]")


def option_pick(value: Any) -> str | None:
    """The option file that settings name for a group, if they do."""
    if isinstance(value, dict):
        value = value.get("option")
    return None if value is None else str(value)


def at_scale(experiment: dict[str, Any], wanted: str | None, file: Path) -> dict[str, Any]:
    """The experiment's settings at scale ``wanted``, or at its own choice; ``scales`` itself is gone.

    Raises:
        UserError: it has no such scale, or none at all.
    """
    rest = {key: value for key, value in experiment.items() if key != SCALES}
    scales = experiment.get(SCALES)
    if scales is None:
        if wanted:
            raise UserError(f"scale={wanted}: {file} has no scales; leave the word out")
        return rest
    if not isinstance(scales, dict) or not all(isinstance(value, dict) for value in scales.values()):
        raise UserError(f"{file}: scales must be NAME: {{settings}} for each scale")
    name = str(wanted or experiment.get(SCALE) or next(iter(scales), None))
    if name not in scales:
        raise UserError(f"scale={name}: {file} has {', '.join(map(str, scales)) or 'none'}{nearest(name, scales)}")
    scaled = copy.deepcopy(rest)
    merge(scaled, scales[name])
    scaled[SCALE] = name
    for group in ("stages", "grid"):
        if isinstance(scaled.get(group), dict):
            scaled[group] = {key: value for key, value in scaled[group].items() if value is not None}
    return scaled


def merge(into: dict[str, Any], settings: dict[str, Any]) -> None:
    """Put ``settings`` on top, group by group."""
    for key, value in settings.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)
