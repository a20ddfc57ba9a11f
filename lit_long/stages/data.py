"""The data stage of a command that runs no experiment: the same folder that a sweep with the same data uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_long.checkpoints.external import open_external
from lit_long.config import ModelConfig, UserError, project_root
from lit_long.config.one_data import compose_data
from lit_long.data.store import Store, open_store, prepare, verify
from lit_long.files import write_atomically
from lit_long.stages.folder import finish, locked, write_stage
from lit_long.stages.mixture import settle_data, uses_builtin
from lit_long.stages.plan import CORPUS, Stage, place

Report = Callable[[str, float], None]


def data_stage(words: dict[str, Any], root: str) -> Stage:
    """The stage that the words mean, its sources looked at. ``root``: where runs/ lies; "" as for a sweep.

    Raises:
        UserError: settings that make no sense, or sources that are not there.
    """

    def pretrained(init: str) -> tuple[ModelConfig, dict[str, Any]]:
        found = open_external(init)
        return found.shape, found.position

    config = compose_data(words, pretrained)
    config.data = settle_data(config.data, "command line", {})
    return place(Path(root).expanduser().resolve() if root else project_root(), CORPUS, config)


def prepare_stage(stage: Stage, processes: int, check: bool, report: Report) -> Store:
    """Prepare the stage's data, or go on with it, or find it done. What is damaged is made again.

    Args:
        processes: that tokenise side by side; 0 = one a core.
        check: read everything that is there already, and not only its size.

    Raises:
        UserError: as `prepare` does; the message is left in the folder, too.
    """
    stage.folder.mkdir(parents=True, exist_ok=True)
    with locked(stage.folder, lambda: report("waiting for the other process that prepares this", 0.0)):
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
        write_stage(stage.folder, stage.identity, stage.settings(), None, None)
        data = stage.config.data
        try:
            result = prepare(data.corpus, stage.folder, report, data.sources, uses_builtin(data), processes)
        except UserError as error:
            write_atomically(stage.folder / "error.txt", f"{error}\n")
            raise
        finish(stage.folder, {"kind": "data"} | result)
    return open_store(stage.folder)


def open_stage(stage: Stage, command: str) -> Store:
    """The stage's prepared data. ``command`` is what to give to prepare them, for the message when they are not there."""
    if not stage.done:
        state = "only a part of these data is prepared" if stage.folder.is_dir() else "these data are not prepared"
        raise UserError(f"{stage.folder}: {state}; first: {command}")
    return open_store(stage.folder)
