"""`python -m lit_long.stage FOLDER`: run the one stage that FOLDER/stage.yaml describes, alone.

The sweep starts these processes, under torchrun too. Started by hand it does the same and prints its progress. Exit codes: 0 done,
1 failed, 2 bad input, 130 interrupted: SIGTERM or Ctrl-C, after the current update. With ``watch_parent=true`` it ends, as by SIGTERM, when
its standard input closes, that is, when the sweep that started it is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from lit_long.config import UserError
from lit_long.evaluation.registry import is_custom, is_task_file
from lit_long.files import is_disk_full, write_atomically
from lit_long.launch.local import STOP_SECONDS, count_processes
from lit_long.stages.folder import JOB_LOCK, is_archived, locked, progress_writer, read_stage
from lit_long.stages.run import run_stage
from lit_long.surroundings import forget_ranks, hide_from_torchmetrics
from lit_long.terminal import run_command

WATCH_PARENT = "watch_parent=true"
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: list[str]) -> int:
    words = [word for word in argv if word != WATCH_PARENT]
    asked = bool({"--help", "-h"} & set(words))
    if len(words) != 1 or asked:
        print(__doc__)
        return DONE if asked else BAD_INPUT
    folder, started_by_sweep = Path(words[0]).resolve(), len(words) < len(argv)
    if is_archived(folder):
        print(f"{folder}: archived, so it is done")
        return DONE
    try:
        config = read_stage(folder)[0]
        if count_processes(config) == 1:
            forget_ranks()
        if config.kind != "data" and not any(is_custom(task) or is_task_file(task) for task in config.evaluation.tasks):
            hide_from_torchmetrics()
        rank = int(os.environ.get("RANK", 0))
        if started_by_sweep:  # which holds the lock
            threading.Thread(target=end_with_parent, daemon=True).start()
            run_stage(folder, progress_writer(folder), rank)
        elif rank:  # a node's torchrun started by hand: the first rank's starter holds the locks
            run_stage(folder, say, rank)
        else:
            with locked(folder, waiting), locked(folder, waiting, name=JOB_LOCK):
                (folder / "error.txt").unlink(missing_ok=True)
                run_stage(folder, say)
    except KeyboardInterrupt as stopped:
        return fail(folder, str(stopped) or "interrupted", INTERRUPTED)
    except UserError as error:
        return fail(folder, str(error), BAD_INPUT)
    except OSError as error:
        if not is_disk_full(error):
            traceback.print_exc()
            return fail(folder, f"{type(error).__name__}: {error}", FAILED)
        return fail(folder, f"no space left on the disk that holds {folder}: free some, then run the same command again", FAILED)
    except Exception as error:  # the last place that can tell the sweep why
        traceback.print_exc()
        return fail(folder, f"{type(error).__name__}: {error}", FAILED)
    return DONE


def say(message: str, done: float) -> None:
    """Progress, for who started the stage by hand."""
    print(f"{done:6.1%}  {message}", flush=True)


def waiting() -> None:
    print("waiting for the other process that runs this stage", flush=True)


def fail(folder: Path, message: str, code: int) -> int:
    """Say why, on standard error and in the folder. Of several ranks the first one knows: it is what ended the others."""
    if code == FAILED and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        message = f"rank {os.environ.get('RANK', 0)}: {message}"
    print(f"error: {message}", file=sys.stderr, flush=True)
    try:
        if folder.is_dir() and not (folder / "error.txt").exists():
            write_atomically(folder / "error.txt", message + "\n")
    except OSError:
        pass  # a full disk may refuse this too; log.txt has it
    return code


def end_with_parent() -> None:
    """Read the pipe that the sweep holds open; its end means that the sweep died. Then end in good order, as the sweep would have asked for."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(FAILED)


if __name__ == "__main__":
    run_command(main, rank=True)
