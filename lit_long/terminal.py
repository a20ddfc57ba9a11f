"""How every command starts and ends: `run_command` around `answer`. What it prints arrives, whatever the terminal, as it comes; and it ends quietly
when nobody reads on."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from lit_long.config import UserError, check_path
from lit_long.files import CACHE_VARIABLES
from lit_long.surroundings import forget_ranks

BAD_INPUT, INTERRUPTED = 2, 130


class ReaderGone(KeyboardInterrupt):
    """Who read the output has ended (`| head`): the command stops in good order, as after Ctrl-C."""


class Output(io.TextIOWrapper):
    """A standard stream. Each line leaves at once, into a pipe too; characters that the encoding lacks (ASCII, Latin-1) become "?"."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> NoReturn:
        """Raises UserError: such as of a file on a full disk."""
        if isinstance(error, BrokenPipeError):
            hang_up(1, 2)
        name = "error" if self.fileno() == 2 else "output"
        silence(self.fileno())
        raise UserError(f"standard {name} cannot be written: {error.strerror}; send it to another place") from None


def hang_up(*descriptors: int) -> NoReturn:
    """Nothing more is printed there. (SIGPIPE's default action would end the process at once, for the pipe of a child or a server's socket, too.)"""
    silence(*descriptors)
    raise ReaderGone


def silence(*descriptors: int) -> None:
    """What is still written there goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


def run_command(main: Callable[[list[str]], int], rank: bool = False) -> NoReturn:
    """Run ``main`` on the words of the command line and exit with the code that it returns.

    Args:
        rank: the process may be one of several; any other forgets what its surroundings say of ranks.
    """
    if not rank:
        forget_ranks()
    for name in ("stdout", "stderr"):
        if stream := getattr(sys, name):  # None: closed by who started us
            setattr(sys, name, Output(stream.buffer, stream.encoding, errors="replace", line_buffering=True))
    try:
        if variable := next((name for name in CACHE_VARIABLES if os.environ.get(name)), None):
            check_path(os.environ[variable], "environment", variable)
        code = main(sys.argv[1:])
        if sys.stdout:
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except UserError as error:  # of the environment, or of the stream itself
        print(f"error: {error}", file=sys.stderr)
        code = BAD_INPUT
    sys.exit(code)


def answer(argv: list[str], usage: str, run: Callable[[list[str]], int | None], interrupted: str = "") -> int:
    """The exit code of a command: what ``run`` returns (None: 0), 2 for bad input, 130 for Ctrl-C.

    Args:
        argv: the words of the command line.
        usage: what ``--help`` prints.
        run: the command; its `UserError` goes to standard error.
        interrupted: said there when it is interrupted. With it, SIGTERM interrupts as Ctrl-C does, also where a shell that put the command in
            the background ignores Ctrl-C.
    """
    if {"--help", "-h"} & set(argv):
        print(usage)
        return 0
    if interrupted:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
    try:
        return run(argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        if interrupted:
            print(interrupted, file=sys.stderr)
        return INTERRUPTED
