"""Let a model write questions and answers about long documents, and check them: data to tune a long model with. Or make such data by rule.

    python -m lit_long.instruct generate n=20 data=builtin model=smollm2-135m out=DIR
    … data.sources.mine.path=FOLDER    one's own documents; domains=[docs] chooses among the data's
    … model.init=NAME · stage=FOLDER   another chat model: pretrained weights, or a training stage of this suite
    … generator=endpoint endpoint.url=http://HOST:8000/v1 endpoint.model=NAME      a server that speaks OpenAI's protocol
    … generator=rules                  no model: sentences of the chunk to be continued, answers checked by rule
    … critic=same|none|rules|endpoint|NAME    who checks (default: who wrote); NAME is another model
    … judge=text|likelihood            what the critic says, or how likely its first word is "correct" (a model of our own)
    … threshold=0.5 planted=50         score that is accepted; wrong answers planted to see whether the critic notices
    … chunk_tokens=768 min_tokens=… short=0.5 max_new_tokens=160 seed=0 temperature=0.7 top_p=0.9 batch=4
    … filters.grounded=0.6 endpoint.concurrency=8 endpoint.per_minute=… tracking.enabled=false root=FOLDER

    python -m lit_long.instruct together n=1000 context=2k data=builtin domains=[docs] seed=0 root=FOLDER out=DIR

writes short conversations, chapters with summaries, and questions about several documents, made by rule, as data=together_32k_instruct reads them.

The first writes DIR/examples.jsonl, DIR/train.jsonl (the kept ones with their documents, to be a source) and DIR/manifest.json. Killed, the same
command goes on; with a larger n it adds. Exit codes: 0 done, 1 some requests got no answer, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lit_long.config import UserError, check_path, typed
from lit_long.config.compose import parse_data_words
from lit_long.config.output_folder import check_writable
from lit_long.terminal import answer, run_command


def main(argv: list[str]) -> int:
    return answer(argv, __doc__, run, "interrupted; the same command goes on where it was")


def run(argv: list[str]) -> int:
    """The verb."""
    verb, argv = (argv[0], argv[1:]) if argv else ("", [])
    if verb not in VERBS:
        raise UserError(f"command line: {verb or 'nothing'!r} is neither generate nor together (see --help)")
    return VERBS[verb](argv)


def generate(argv: list[str]) -> int:
    """Generate, record, and say what came of it."""
    from lit_long.instruct.settings import InstructCommand, documents_of, make_run
    from lit_long.stages.data import data_stage, prepare_stage
    from lit_long.stages.model import load_model
    from lit_long.tracking.record import INSTRUCT, open_command, record_instruct

    words = parse_data_words(argv, InstructCommand)
    config = typed(InstructCommand, words, "command line")
    config.check()
    for key in ("root", "stage", "out"):
        check_path(getattr(config, key), "command line", key)
    config.out = os.path.expanduser(config.out)
    check_writable(Path(config.out), "out")
    tracker = open_command(config.tracking, INSTRUCT, config.root)
    say = partial(print, file=sys.stderr, flush=True)
    report = reporter(say)
    stage = data_stage({group: words[group] for group in ("data", "model") if group in words}, config.root)
    store = prepare_stage(stage, 0, False, report)
    domains = documents_of(store, stage.config.data.weights, config.domains)
    load = partial(load_model, device=config.device, dtype=config.dtype, say=say)
    going = make_run(config, words, store, domains, load, report)
    manifest = going()
    record_instruct(tracker, Path(config.out), manifest)
    counts, critique = manifest["counts"], manifest["critique"] or {}
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    print("turned away by rule: " + ", ".join(f"{count} {rule}" for rule, count in manifest["failed"].items()))
    if critique.get("planted"):
        wrong, right = critique["rejected_planted"], critique["rejected_generated"]
        worth = {True: "is inert: it does not tell wrong answers from right ones", False: "works", None: "may or may not work"}
        print(
            f"the critique {worth[critique['inert']]} (rejects {wrong:.0%} of {critique['planted']} planted wrong answers, {right:.0%} of the "
            f"generated; by chance with p = {critique['chance']:.2g})"
        )
    print(f"written  {config.out}")
    if manifest["unanswered"]:
        key, reason = next(iter(manifest["unanswered"].items()))
        say(f"{len(manifest['unanswered'])} requests got no answer ({key}: {reason}); the same command asks them again")
    return 1 if manifest["unanswered"] else 0


def together(argv: list[str]) -> int:
    """Write the recipe's three files."""
    from lit_long.instruct.settings import documents_of
    from lit_long.instruct.together import TogetherCommand, write_together
    from lit_long.stages.data import data_stage, prepare_stage

    words = parse_data_words(argv, TogetherCommand)
    command = typed(TogetherCommand, words, "command line")
    command.check()
    for key in ("root", "out"):
        check_path(getattr(command, key), "command line", key)
    command.out = os.path.expanduser(command.out)
    check_writable(Path(command.out), "out")
    report = reporter(partial(print, file=sys.stderr, flush=True))
    stage = data_stage({group: words[group] for group in ("data",) if group in words}, command.root)
    store = prepare_stage(stage, 0, False, report)
    counts = write_together(store, documents_of(store, stage.config.data.weights, command.domains), command, report)
    print(", ".join(f"{count} of {name}" for name, count in counts.items()))
    print(f"written  {command.out}")
    return 0


def reporter(say: Callable[[str], None]) -> Callable[[str, float], None]:
    """Says each line of progress once."""
    lines = [""]

    def report(message: str, done: float) -> None:
        if (line := f"{done:6.1%}  {message}") != lines[-1]:
            say(line)
            lines[:] = [line]

    return report


VERBS = {"generate": generate, "together": together}

if __name__ == "__main__":
    run_command(main)
