"""Prepare data once, and look at what there is.

    python -m lit_long.data prepare data=builtin                          build and tokenise; if killed, run it again to continue
    python -m lit_long.data prepare data.sources.mine.path=FOLDER         one's own text, JSON lines, parquet, or hf:NAME
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

import sys
from dataclasses import dataclass
from pathlib import Path

from lit_long.config import UserError, typed
from lit_long.config.compose import DATA_GROUPS, parse_data_words
from lit_long.config.output_folder import check_writable
from lit_long.config.ranges import Count, CountOrNone, FilePath
from lit_long.terminal import answer, run_command

DONE, DAMAGED = 0, 1


@dataclass
class Options:
    """What the command itself understands; the rest is about the data."""

    format: str = "text"
    out: FilePath = ""
    long: Count = 2048
    verify: bool = False
    processes: CountOrNone = 0
    share: str = ""
    root: FilePath = ""


def main(argv: list[str]) -> int:
    return answer(argv, __doc__, run, "interrupted; the same command goes on where it was")


def run(argv: list[str]) -> int:
    verb, words = (argv[0], argv[1:]) if argv else ("", [])
    if verb not in ("prepare", "inspect"):
        raise UserError(f"command line: {verb or 'nothing'!r} is neither prepare nor inspect (see --help)")
    said = parse_data_words(words, Options)
    options = typed(Options, {key: value for key, value in said.items() if key not in DATA_GROUPS}, "command line")
    if options.format not in ("text", "json"):
        raise UserError(f"command line: format is text or json, not {options.format!r}")
    if options.share and (verb == "inspect" or options.verify):
        raise UserError("command line: share=I/N only prepares; leave it out to inspect or to verify")
    return act(verb, words, said, options)


def act(verb: str, words: list[str], said: dict, options: Options) -> int:
    """Prepare or inspect, and print."""
    from lit_long.data.inspect import progress_lines, show, show_share
    from lit_long.data.token_store import verify
    from lit_long.stages.data import data_stage, open_stage, prepare_share, prepare_stage

    if options.out:
        check_writable(Path(options.out).expanduser(), "out")
    stage, report = data_stage(said, options.root), progress_lines()
    if verb == "prepare":
        check_writable(stage.folder, "root")
    if options.share:
        shards = prepare_share(stage, options.share, options.processes, report)
        show_share(options.share, *shards, stage.folder, options.format)
        return DONE
    if verb == "prepare":
        store = prepare_stage(stage, options.processes, options.verify, report)
    else:
        keys = (*DATA_GROUPS, "root")
        about = [word for word in words if word.split("=")[0].split(".")[0] in keys]
        store = open_stage(stage, " ".join(["python -m lit_long.data prepare", *about]))
    show(store, options.long, options.out, options.format, whole=verb == "inspect")
    if verb == "inspect" and options.verify and (damaged := verify(store)):
        print(f"error: damaged: {', '.join(map(str, damaged))}; make them again with prepare … verify=true", file=sys.stderr)
        return DAMAGED
    return DONE


if __name__ == "__main__":
    run_command(main)
