"""The data stage of a command that runs no experiment: the same folder that a sweep with the same data uses."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lit_long.config import UserError, project_root
from lit_long.config.compose import compose_data
from lit_long.data.disk_space import estimate_disk_space
from lit_long.data.prepare import prepare
from lit_long.data.prepare import prepare_share as share_of
from lit_long.data.token_store import Store, open_store, verify
from lit_long.files import is_disk_full, write_atomically
from lit_long.pretrained import open_pretrained
from lit_long.stages.folder import finish, locked, write_stage
from lit_long.stages.plan import CORPUS, Stage, place_stage
from lit_long.stages.resolve import resolve_data, uses_builtin

Report = Callable[[str, float], None]


def data_stage(words: dict[str, Any], root: str) -> Stage:
    """The stage that the words mean, its sources looked at. ``root``: where runs/ lies; "" as for a sweep.

    Raises:
        UserError: settings that make no sense, or sources that are not there.
    """
    config = compose_data(words, open_pretrained)
    config.data = resolve_data(config.data, "command line", {})
    return place_stage(Path(root).expanduser().resolve() if root else project_root(), CORPUS, config)


def prepare_stage(stage: Stage, processes: int, check: bool, report: Report) -> Store:
    """Prepare the stage's data, or go on with it, or find it done. What is damaged is made again.

    Args:
        processes: that tokenise side by side; 0 = one a core.
        check: read everything that is there already, and not only its size.

    Raises:
        UserError: as `prepare` does; the message is left in the folder, too.
    """
    stage.folder.mkdir(parents=True, exist_ok=True)
    with locked(stage.folder, lambda: report("waiting for the processes that prepare this", 0.0)):
        if stage.done:
            try:
                store = open_store(stage.folder)
            except UserError as error:
                report(f"preparing again, for {error}", 0.0)
            else:
                damaged = verify(store) if check else []
                if not damaged:
                    return store
                report(f"preparing again, for {damaged[0]} is damaged", 0.0)
                for file in damaged:
                    file.with_suffix(".json").unlink(missing_ok=True)
            (stage.folder / "DONE").unlink()
        data = stage.config.data
        with _told(stage.folder):
            _check_disk_space(stage, report)
            write_stage(stage.folder, stage.identity, stage.settings(), None, None)
            result = prepare(data.corpus, stage.folder, report, data.sources, uses_builtin(data), processes)
            finish(stage.folder, {"kind": "data"} | result)
    return open_store(stage.folder)


def prepare_share(stage: Stage, share: str, processes: int, report: Report) -> tuple[int, int]:
    """Make one share of the shards, beside other processes that make theirs; ``share`` is I/N, the I-th of N.

    Returns:
        How many shards there are now, of all shares, and how many there will be.

    Raises:
        UserError: as `prepare_stage` does; for a share that is none, and for data without sources.
    """
    wanted = re.fullmatch(r"(\d+)/(\d+)", share)
    if not wanted or not 1 <= int(wanted[1]) <= int(wanted[2]):
        raise UserError(f"command line: share={share} must be I/N, the I-th share of N, such as 1/8 … 8/8")
    data = stage.config.data
    if not data.sources:
        raise UserError("command line: share=… divides the shards of data.sources, and there are none; leave it out")
    stage.folder.mkdir(parents=True, exist_ok=True)
    with (
        locked(stage.folder, lambda: report("waiting for the process that prepares all of this", 0.0), shared=True),
        _told(stage.folder),
    ):
        if stage.done:
            shards = sum(len(account["shards"]) for account in open_store(stage.folder).sources.values())
            return shards, shards
        _check_disk_space(stage, report)
        write_stage(stage.folder, stage.identity, stage.settings(), None, None)
        tokenizer_lock = locked(stage.folder, lambda: report("waiting for the tokenizer", 0.0), name="tokenizer.lock")
        part = (int(wanted[1]), int(wanted[2]))
        return share_of(data.corpus, stage.folder, part, report, data.sources, uses_builtin(data), processes, tokenizer_lock)


def _check_disk_space(stage: Stage, report: Report) -> None:
    """Say what the shards will take. Raises UserError if the disk cannot hold even the least of it."""
    about, least = estimate_disk_space(stage.config.data.corpus, stage.config.data.sources, stage.folder)
    free = shutil.disk_usage(stage.folder).free
    if least > free:
        raise UserError(
            f"{stage.folder}: the tokens of data.sources need about {_size(about)} and the disk has {_size(free)} free; "
            f"free some, or write elsewhere with root=FOLDER"
        )
    if about > 2**26:  # less is no news
        report(f"about {_size(about)} of tokens to write; the disk has {_size(free)} free", 0.0)


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count // 2**20} MiB"


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Leave the message of what goes wrong in the folder, too, as far as there is disk space for it."""
    try:
        try:
            yield
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise UserError(
                f"No space left on the disk that holds {folder}. Free some, and give the same command again: it goes on where it was."
            ) from None
    except UserError as error:
        with suppress(OSError):
            write_atomically(folder / "error.txt", f"{error}\n")
        raise


def open_stage(stage: Stage, command: str) -> Store:
    """The stage's prepared data. ``command`` is what to give to prepare them, for the message when they are not there."""
    if not stage.done:
        state = "only a part of these data is prepared" if stage.folder.is_dir() else "these data are not prepared"
        raise UserError(f"{stage.folder}: {state}; first: {command}")
    return open_store(stage.folder)
