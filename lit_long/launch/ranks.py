"""torchrun, that leaves in the stage's folder which rank ended first, and how.

    python -m lit_long.launch.ranks [torchrun's own arguments] -m lit_long.stage FOLDER …

Exit codes: those of the ranks: 0 done, 1 failed, 2 bad input, 130 interrupted. Runs in a process of its own: a sweep imports no torch.
"""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import Any

from lit_long.files import write_atomically
from lit_long.surroundings import forget_ranks

STAGE = "lit_long.stage"
FAILED, INTERRUPTED = 1, 130


def main(argv: list[str]) -> int:
    forget_ranks()  # torchrun takes some for its arguments, and the rest would reach its ranks
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    folder = Path(argv[argv.index(STAGE) + 1])
    try:
        run(parse_args(argv))
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        return explain_failure(folder, error.failures)
    except SignalException as error:
        if not (folder / "error.txt").exists():  # they had not begun to train
            write_atomically(folder / "error.txt", f"interrupted by {error.sigval.name}\n")
        return INTERRUPTED
    return 0


def explain_failure(folder: Path, failures: dict[int, Any]) -> int:
    """Write error.txt where the ranks could not, or could not know; return the exit code.

    A rank that was killed says nothing, and those that were connected with it blame the connection. Ranks that end later were ended by
    torchrun itself, because of the first.

    Args:
        failures: torchrun's, by rank.
    """
    first = min(failure.timestamp for failure in failures.values())
    begun = {rank: failure for rank, failure in failures.items() if failure.timestamp <= first + 1}
    killed = {rank: -failure.exitcode for rank, failure in begun.items() if failure.exitcode < 0}
    others = {rank: number for rank, number in killed.items() if number != signal.SIGTERM}
    codes = {failure.exitcode for failure in begun.values() if failure.exitcode > 0}
    file = folder / "error.txt"
    if others:
        write_atomically(
            file, f"{describe_signals(others)}; torchrun ended the others. The same command goes on from the last checkpoint\n"
        )
        return FAILED
    if not codes:
        write_atomically(file, f"{describe_signals(killed)}\n")
        return INTERRUPTED
    if not file.exists():
        rank, failure = next((rank, failure) for rank, failure in begun.items() if failure.exitcode > 0)
        write_atomically(
            file, f"rank {rank} on {socket.gethostname()} ended with exit code {failure.exitcode} and said nothing\n"
        )
    return min(codes) if len(codes) == 1 else FAILED


def describe_signals(killed: dict[int, int]) -> str:
    """Which ranks were ended by which signals, in words."""
    each = [f"rank {rank} by {signal.Signals(number).name}" for rank, number in sorted(killed.items())]
    hint = " (was the memory used up?)" if signal.SIGKILL in killed.values() else ""
    return f"{', '.join(each)}{hint}: ended on {socket.gethostname()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
