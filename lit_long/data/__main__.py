"""Prepare data once, and look at what there is.

    python -m lit_long.data prepare data=builtin                          build and tokenise; killed, the same command goes on
    python -m lit_long.data prepare data.sources.mine.path=FOLDER         one's own text, .jsonl(.gz|.zst), .parquet or hf:NAME
    python -m lit_long.data inspect data.sources.mine.path=FOLDER         documents, tokens, lengths, a sample
    … format=json        machine-readable: documents, tokens, long_share (of documents), digest, per source
    … out=FOLDER         also draw the lengths as FOLDER/lengths.png
    … long=32k           documents of more tokens count as long (default 2,048)
    … verify=true        read every shard and compare checksums; `prepare` makes the damaged ones again
    … processes=8        that tokenise side by side (default: one a core); the result does not depend on it
    … share=2/8          tokenise only the second of eight shares, beside processes that do the others; then the command without it
    … root=FOLDER        where runs/ lies, as for a sweep

A sweep with the same data uses what was prepared here. model=NAME or model.init=… brings that model's tokenizer. Exit codes: 0 done,
1 damaged, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from lit_long.config import UserError, typed
from lit_long.config.one_data import GROUPS, parse_data_words

DONE, DAMAGED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass
class Options:
    """What the command itself understands; the rest is about the data."""

    format: str = "text"
    out: str = ""
    long: int = 2048
    verify: bool = False
    processes: int = 0
    share: str = ""
    root: str = ""


def main(argv: list[str]) -> int:
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return DONE
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        verb, words = (argv[0], argv[1:]) if argv else ("", [])
        if verb not in ("prepare", "inspect"):
            raise UserError(f"command line: {verb or 'nothing'!r} is neither prepare nor inspect (see --help)")
        said = parse_data_words(words)
        options = typed(Options, {key: value for key, value in said.items() if key not in GROUPS}, "command line")
        if options.format not in ("text", "json") or options.processes < 0 or options.long < 1:
            raise UserError("command line: format is text or json, processes at least 0 and long at least 1")
        if options.share and (verb == "inspect" or options.verify):
            raise UserError("command line: share=I/N only prepares; leave it out to inspect or to verify")
        return act(verb, words, said, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return INTERRUPTED


def act(verb: str, words: list[str], said: dict, options: Options) -> int:
    """Prepare or inspect, and print."""
    from rich.console import Console

    from lit_long.data.store import verify
    from lit_long.data.summary import draw, print_summary, summarise
    from lit_long.stages.data import data_stage, open_stage, prepare_share, prepare_stage

    lines = [""]

    def report(message: str, done: float) -> None:
        if (line := f"{done:6.1%}  {message}") != lines[-1]:  # who waits says so every half second
            print(line, file=sys.stderr, flush=True)
            lines[:] = [line]

    stage = data_stage(said, options.root)
    if options.share:
        there, shards = prepare_share(stage, options.share, options.processes, report)
        left = {"share": options.share, "shards": shards, "shards_there": there, "folder": str(stage.folder)}
        print(
            json.dumps(left, indent=1)
            if options.format == "json"
            else f"{there:,} of {shards:,} shards are there; once all are, the same command without share= does the rest"
        )
        return DONE
    if verb == "prepare":
        store = prepare_stage(stage, options.processes, options.verify, report)
    else:
        keys = (*GROUPS, "root")
        about = [word for word in words if word.split("=")[0].split(".")[0] in keys]
        store = open_stage(stage, " ".join(["python -m lit_long.data prepare", *about]))
    summary = summarise(store, options.long)
    if options.out:
        draw(summary, Path(options.out).expanduser() / "lengths.png")
    if options.format == "json":
        print(json.dumps(summary, indent=1))
    elif verb == "inspect":
        print_summary(summary, store, Console())
    else:
        print(
            f"{summary['documents']:,} documents, {summary['tokens']:,} tokens\ndigest  {summary['digest']}\nfolder  {stage.folder}"
        )
    if verb == "inspect" and options.verify and (damaged := verify(store)):
        print(f"error: damaged: {', '.join(map(str, damaged))}; make them again with prepare … verify=true", file=sys.stderr)
        return DAMAGED
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
