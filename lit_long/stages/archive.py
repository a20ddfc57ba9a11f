"""Finished stages that travel: archives of those of a sweep, and weights that came with lit-long.

An archive is experiments/archive/KIND-IDENTITY/, found as experiments are, small enough for git:

stage.yaml            identity, inputs and settings, as in the stage's folder
result.json           what it measured, byte for byte
curve.json            of a training stage: its losses in short
weights.safetensors   in bf16, where other stages of the plan start from them and the limits allow it
adapter.safetensors   instead, of an adapted stage that started from pretrained weights: as it was trained. The weights are made again from both
archive.json          when the stage ended, versions, and the sha256 of every file above
DONE                  written last

A sweep counts a stage as done whose archive has its identity (`plan.py`), and never writes into an archive.

Shipped weights let a sweep start from a trained model at once:

    stages:
      base: {shipped: "mini-s${seed}", tokens: 8M, …}     the recipe, and what it gave: experiments/bases/mini-s0/

The folder is a Hugging Face folder as `python -m lit_long.export` writes it of a finished stage: its card tells where the weights come from, its
``recipe.json`` with which settings they were made. They are taken where the stage has just these settings; with others, or another seed, it
is trained, and so it is with ``base=train``. Stages after it start from these weights as from any pretrained ones: known by their content,
with their tokenizer.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lit_long import __version__
from lit_long.config import ModelConfig, StageConfig, UserError
from lit_long.config.command import folders, project_root
from lit_long.files import write_atomically
from lit_long.stages.folder import ARCHIVE, DONE, is_archived, read_result, read_stage
from lit_long.stages.identity import recipe
from lit_long.stages.identity_0_1 import recipe_0_1

PLACE = "archive"  # below experiments/
CURVE, WEIGHTS, ADAPTED = "curve.json", "weights.safetensors", "adapter.safetensors"
TRAINED_ADAPTER = "adapter/adapter_model.safetensors"  # in a stage's folder (training/adapter.py)
IN_BF16 = "archived in bf16"  # what a stage's result says of its parent's weights
MB = 1_000_000
SHIPPED, TRAIN = "shipped", "train"
BASES = "bases"  # below experiments/
RECIPE = "recipe.json"


@dataclass(frozen=True)
class Limits:
    """In MB (10^6 bytes): the weights of a stage, and the whole archive."""

    weights: float = 4
    archive: float = 60


@dataclass
class Archived:
    """What `archive_stages` did: folders written, those of them with new weights, and lines about weights that were left out."""

    written: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    bytes: int = 0  # of the whole archive, afterwards


def find_archive(names: Iterable[str]) -> Path | None:
    """The archive of the stage that one of ``names`` (KIND-IDENTITY) stands for: the user's, the checkout's or the package's.

    Raises:
        UserError: as `check_archive` does.
    """
    names = list(dict.fromkeys(names))
    for folder in (place / PLACE / name for place in folders("experiments") for name in names):
        if folder.is_dir():
            check_archive(folder)
            return folder
    return None


def check_archive(folder: Path) -> None:
    """Raises UserError, which names the file, where the archive is not whole or is that of another stage."""
    remedy = f"Get it again (git checkout, git lfs pull), or delete {folder}: then the stage runs"
    for name, digest in read_archive(folder)["files"].items():
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read: {error.strerror}. {remedy}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise UserError(f"{folder / name}: is not what {ARCHIVE} says, so it was cut off or changed. {remedy}")
    if not (folder / DONE).is_file():
        raise UserError(f"{folder / DONE}: is not there. {remedy}")
    stage = yaml.safe_load((folder / "stage.yaml").read_text(encoding="utf-8"))
    if (name := f"{stage['settings']['kind']}-{stage['identity']}") != folder.name:
        raise UserError(f"{folder / 'stage.yaml'}: is of {name}, another stage than its folder says. {remedy}")


def check_data(folder: Path, digest: str) -> None:
    """Raises UserError where data that were prepared again in ``folder`` are not those that archived stages used."""
    archive = find_archive([folder.name])
    if archive and (before := read_result(archive)["digest"]) != digest:
        raise UserError(
            f"{folder}: these data have digest {digest[:12]}…, and those of the archive {before[:12]}… ({archive}), so what is archived cannot be "
            f"compared with what would run here. Prepare the data as they were, or go on without {archive.parent}"
        )


def read_archive(folder: Path) -> dict[str, Any]:
    """``archive.json``."""
    file = folder / ARCHIVE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not {"stage.yaml", "result.json"} <= set(content["files"]):
            raise ValueError("it does not list stage.yaml and result.json")
        return content
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file}: cannot be read: {' '.join(str(error).split())}. Get it again (git checkout), or delete {folder}: then the stage runs"
        ) from None


def has_weights(folder: Path) -> bool:
    return WEIGHTS in read_archive(folder)["files"]


def has_adapter(folder: Path) -> bool:
    return ADAPTED in read_archive(folder)["files"]


def find_adapter(folder: Path, config: StageConfig) -> Path | None:
    """The archive that the stage to run in ``folder`` can be restored from: it holds the adapter, and no checkpoints within the run are wanted."""
    if config.kind != "train" or not config.adapter.rank or config.trainer.milestones:
        return None
    archive = find_archive([folder.name])
    return archive if archive and has_adapter(archive) else None


def archive_stages(
    finished: Mapping[Path, dict[str, Any] | None], needed: Sequence[Path], into: Path, limits: Limits
) -> Archived:
    """Archive finished stages below ``into``. What is there already stays; weights are added as far as the limits allow.

    Args:
        finished: their folders, each with the training curve in short if it has one.
        needed: those of them whose weights others start from, the most needed first.

    Raises:
        UserError: a stage's folder is not whole, or the archive would grow beyond its limit without any weights.
    """
    done, contents = Archived(), {}
    for folder, curve in finished.items():
        target = into / folder.name
        files = small_files(folder, curve)
        if not (is_archived(target) and (target / "result.json").read_bytes() == files["result.json"]):
            contents[folder] = files
    taken = sum(file.stat().st_size for file in into.rglob("*") if file.is_file())
    taken += sum(len(content) for files in contents.values() for content in files.values())
    if taken > limits.archive * MB:
        raise UserError(
            f"{into}: would take {taken / MB:.1f} MB, and archive_mb={limits.archive:g}; delete stages of it that are no longer needed, or say archive_mb=…"
        )
    for folder, files in contents.items():
        write_archive(into / folder.name, files, ended(folder), read_result(folder).get("versions", {}))
        done.written.append(folder.name)
    for folder in needed:
        target = into / folder.name
        if folder not in finished or has_weights(target) or has_adapter(target):
            continue
        about = f"{folder.name}: its weights are left out"
        adapted = is_adapted(folder)
        source = folder / TRAINED_ADAPTER if adapted else folder / WEIGHTS
        if not source.is_file():
            done.left_out.append(f"{about}: {source} is not there")
        elif (size := source.stat().st_size if adapted else bf16_bytes(source)) > limits.weights * MB:
            what = "as an adapter" if adapted else "in bf16"
            done.left_out.append(f"{about}: {size / MB:.1f} MB {what}, and weights_mb={limits.weights:g}")
        elif taken + size > limits.archive * MB:
            done.left_out.append(
                f"{about}: with their {size / MB:.1f} MB the archive takes {(taken + size) / MB:.1f} MB, and archive_mb={limits.archive:g}"
            )
        else:
            if adapted:
                add_weights(target, ADAPTED, source.read_bytes(), "adapter")
            else:
                add_weights(target, WEIGHTS, in_bf16(source), "bf16")
            taken += size
            done.weights.append(folder.name)
    done.bytes = sum(file.stat().st_size for file in into.rglob("*") if file.is_file())
    return done


def small_files(folder: Path, curve: dict[str, Any] | None) -> dict[str, bytes]:
    """What is archived of every stage, by name. Inputs are named as siblings, wherever they lie now, and shipped weights as in a checkout."""
    try:
        stage = yaml.safe_load((folder / "stage.yaml").read_text(encoding="utf-8"))
        stage["inputs"] = {key: Path(name).name if name else None for key, name in stage["inputs"].items()}
        stage["settings"] = name_in_checkout(stage["settings"])
        result = (folder / "result.json").read_bytes()
    except (OSError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{folder}: cannot be archived: {' '.join(str(error).split())}") from None
    files = {"stage.yaml": yaml.safe_dump(stage, sort_keys=False, allow_unicode=True).encode(), "result.json": result}
    return files | ({CURVE: (json.dumps(curve) + "\n").encode()} if curve else {})


def name_in_checkout(settings: Any) -> Any:
    """The settings with shipped weights (experiments/bases/…), and whatever else lies in this checkout (data/…), named as from its top, not by a
    path of the machine they ran on."""
    if isinstance(settings, dict):
        return {key: name_in_checkout(value) for key, value in settings.items()}
    if isinstance(settings, list):
        return [name_in_checkout(value) for value in settings]
    for place in folders("experiments"):
        if isinstance(settings, str) and settings.startswith(f"{place / BASES}/"):
            return str(Path(settings).relative_to(place.parent))
    if isinstance(settings, str) and settings.startswith(f"{project_root()}/"):
        return str(Path(settings).relative_to(project_root()))
    return settings


def ended(folder: Path) -> str:
    """When the stage ended (UTC, ISO 8601): by its marker, or as its archive says, for git keeps no times."""
    if is_archived(folder):
        return read_archive(folder)["ended"]
    when = datetime.datetime.fromtimestamp((folder / DONE).stat().st_mtime, datetime.UTC)
    return when.isoformat(timespec="seconds")


def write_archive(target: Path, files: dict[str, bytes], when: str, versions: dict[str, str]) -> None:
    """The folder with ``files``, in place of one that may be there."""
    if target.exists():  # of the same stage, run again
        shutil.rmtree(target)
    for name, content in files.items():
        write_atomically(target / name, content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    about = {"ended": when, "versions": versions, "archived_by": f"lit-long {__version__}", "weights": "", "files": digests}
    write_atomically(target / ARCHIVE, json.dumps(about, indent=1) + "\n")
    write_atomically(target / DONE, "")


def is_adapted(folder: Path) -> bool:
    """Whether its weights are pretrained ones and an adapter: those can be had again anywhere, so the adapter alone is archived."""
    config, _, parent = read_stage(folder)
    return bool(config.adapter.rank) and parent is None


def add_weights(target: Path, name: str, weights: bytes, kind: str) -> None:
    """First the file, then what lists it: a file that is not listed does not count."""
    about = read_archive(target)
    write_atomically(target / name, weights)
    about["weights"], about["files"][name] = kind, hashlib.sha256(weights).hexdigest()
    write_atomically(target / ARCHIVE, json.dumps(about, indent=1) + "\n")


def bf16_bytes(file: Path) -> int:
    """Of the tensors in ``file``, in bf16."""
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as weights: {error}; delete {file.parent} and run the sweep again") from None
    return 2 * sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def in_bf16(file: Path) -> bytes:
    import torch  # which planning does not need
    from safetensors.torch import load_file, save

    return save({name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()})


def check_base(base: str, stages: dict[str, dict], file: Path) -> None:
    """Raises UserError for another word than those two, and for one that changes nothing."""
    if base not in (SHIPPED, TRAIN):
        raise UserError(f"base={base}: must be {SHIPPED} or {TRAIN}")
    if base == TRAIN and not any(stage.get("shipped") for stage in stages.values()):
        raise UserError(f"base={TRAIN}: no stage of {file} has shipped weights, so all are trained anyway; leave the word out")


def shipped_folder(config: StageConfig) -> str:
    """The folder of the weights that the resolved stage would give, or "" if none came with lit-long.

    Raises:
        UserError: a folder without a recipe, or an unreadable one.
    """
    for place in folders("experiments"):
        folder = place / BASES / config.shipped
        if not (folder / "config.json").is_file():
            continue
        try:
            made_with = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder / RECIPE}: cannot be read ({error}), so nothing says with which settings these weights were made. "
                f"Export the stage anew (python -m lit_long.export), or base={TRAIN} trains it."
            ) from error
        if made_with in (recipe(config), recipe_0_1(config)):
            return str(folder)
    return ""


def stand_in(config: StageConfig, folder: str, shape: ModelConfig, where: str) -> StageConfig:
    """Settings of the stage that is not trained, for those that start from it: its own, and the weights' name.

    Raises:
        UserError: the weights are of another shape than the settings say.
    """
    own = replace(config.model, init=folder, vocab_size=shape.vocab_size)
    if own != replace(shape, init=folder):
        raise UserError(
            f"{where}: the weights in {folder} are of another shape than its {RECIPE} says; base={TRAIN} trains others"
        )
    return replace(config, model=own)
