"""What is in a prepared store: documents, tokens, how long they are, how much lies in long ones, and a sample to look at."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_long.config import UserError
from lit_long.data.prepare import LEFT_OUT
from lit_long.data.sampling import permutation
from lit_long.data.token_store import SPLITS, Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAR = 40  # columns of the terminal's longest bar
_SAMPLE_CHARACTERS = 400
_COLOURS = ("#3b6fb6", "#d1722c", "#4c9a5b", "#8d5ba6", "#b8474f", "#7a6a58", "#2e8f9a", "#9a8a2e")


def summarise(store: Store, long: int) -> dict[str, Any]:
    """The whole store, each source (domain) and each of its splits in numbers.

    Args:
        long: a document of more tokens counts as long.

    Returns:
        ``documents``, ``tokens``, ``long_documents``, their ``long_tokens``, ``long_share`` of all documents and ``long_token_share`` of all
        tokens, ``digest``, and ``sources``: the same by name, with ``train`` and ``validation``, a ``histogram`` over both splits ([2^k,
        documents, tokens]) and, of one's own sources, what was left out.
    """
    sources: dict[str, Any] = {}
    for name, splits in store.manifest["domains"].items():
        found = {split: _split(store.documents(name, split).lengths, splits[split], long) for split in SPLITS}
        account = {key: value for key, value in store.sources.get(name, {}).items() if key != "shards"}
        sources[name] = _whole(found.values()) | found | {"histogram": _histogram(splits)} | account
    return _whole(sources.values()) | {
        "long": long,
        "digest": store.manifest["digest"],
        "tokenizer": store.manifest["tokenizer"],
        "vocab_size": store.manifest["vocab_size"],
        "folder": str(store.folder),
        "sources": sources,
    }


def _split(lengths: np.ndarray, entry: dict[str, Any], long: int) -> dict[str, Any]:
    inside = lengths > long
    return _shares(entry["documents"], entry["tokens"], int(inside.sum()), int(lengths[inside].sum())) | {"bytes": entry["bytes"]}


def _shares(documents: int, tokens: int, long_documents: int, long_tokens: int) -> dict[str, Any]:
    return {
        "documents": documents,
        "tokens": tokens,
        "long_documents": long_documents,
        "long_tokens": long_tokens,
        "long_share": long_documents / max(1, documents),
        "long_token_share": long_tokens / max(1, tokens),
    }


def _whole(pieces: Iterable[dict[str, Any]]) -> dict[str, Any]:
    names = ("documents", "tokens", "long_documents", "long_tokens")
    pieces = list(pieces)
    return _shares(*(sum(piece[name] for piece in pieces) for name in names))


def _histogram(splits: dict[str, Any]) -> list[list[int]]:
    rows: dict[int, list[int]] = {}
    for split in SPLITS:
        for lower, documents, tokens in splits[split].get("histogram", ()):
            row = rows.setdefault(lower, [lower, 0, 0])
            row[1] += documents
            row[2] += tokens
    return [rows[lower] for lower in sorted(rows)]


def sample(store: Store, domain: str, seed: int = 0) -> tuple[str, str]:
    """Name and decoded beginning of a random training document."""
    documents = store.documents(domain, "train")
    index = int(permutation(len(documents), seed, "sample", domain)[0])
    tokens = documents[index][1 : 1 + _SAMPLE_CHARACTERS].tolist()  # a token is at least a byte; the separator is left out
    text = store.tokenizer.decode(tokens, skip_special_tokens=False)[:_SAMPLE_CHARACTERS]
    return documents.name(index), text


def show(store: Store, long: int, out: str, form: str, whole: bool) -> None:
    """Print the summary, as text or json; as text all of it, or only what there is and where. ``out``: a folder for the picture, or ""."""
    summary = summarise(store, long)
    if out:
        draw(summary, Path(out).expanduser() / "lengths.png")
    if form == "json":
        print(json.dumps(summary, indent=1))
    elif whole:
        print_summary(summary, store, Console())
    else:
        print(f"{summary['documents']:,} documents, {summary['tokens']:,} tokens")
        for name, source in summary["sources"].items():
            if said := source.get("files_left_out"):
                print(f"{name}: {said}")
        print(f"digest  {summary['digest']}\nfolder  {summary['folder']}")


def show_share(share: str, there: int, shards: int, folder: Path, form: str) -> None:
    """Print how many of all shards there are, as text or json."""
    if form == "json":
        print(json.dumps({"share": share, "shards": shards, "shards_there": there, "folder": str(folder)}, indent=1))
    else:
        print(f"{there:,} of {shards:,} shards are there; once all are, the same command without share= does the rest")


def progress_lines() -> Callable[[str, float], None]:
    """A function that prints progress on standard error, a line each time that there is news."""
    last = ""

    def report(message: str, done: float) -> None:
        nonlocal last
        if (line := f"{done:6.1%}  {message}") != last:  # who waits says so every half second
            print(line, file=sys.stderr, flush=True)
            last = line

    return report


def print_summary(summary: dict[str, Any], store: Store, console: Console) -> None:
    """Tables, histograms of tokens by length of their document, and a sample of each source."""
    table = Table(title=f"{summary['tokens']:,} tokens in {summary['documents']:,} documents")
    for name in ("source", "split", "documents", "tokens", "bytes/token", f"in documents > {summary['long']:,}"):
        table.add_column(name, justify="left" if name in ("source", "split") else "right")
    for name, source in summary["sources"].items():
        for split in SPLITS:
            row = source[split]
            ratio = f"{row['bytes'] / row['tokens']:.2f}" if row["tokens"] else "–"
            table.add_row(name, split, f"{row['documents']:,}", f"{row['tokens']:,}", ratio, f"{row['long_token_share']:.1%}")
    console.print(table)
    for name, source in summary["sources"].items():
        console.print(f"\n[bold]{name}[/bold]{escape(describe_left_out(source))}", highlight=False)
        console.print("bars: tokens in documents of that length; numbers: the documents", style="dim")
        most = max((tokens for *_, tokens in source["histogram"]), default=1)
        for lower, documents, tokens in source["histogram"]:
            bar = "█" * round(_BAR * tokens / most) or ("▏" if documents else "")
            console.print(f"{lower:>10,} – {2 * lower - 1:<10,} {bar:<{_BAR}} {documents:,}", highlight=False, markup=False)
        title, text = sample(store, name)
        console.print(f"a sample: {title}", style="dim", highlight=False, markup=False)
        console.print(text, highlight=False, markup=False)
    console.print(f"\ndigest  {summary['digest']}\nfolder  {summary['folder']}", highlight=False, markup=False, soft_wrap=True)


def describe_left_out(source: dict[str, Any]) -> str:
    """What became of the documents that were read and are not there."""
    reasons = LEFT_OUT | {"duplicates": "duplicates", "held_out_elsewhere": "held out elsewhere"}
    said = [f"{source[name]:,} {words}" for name, words in reasons.items() if source.get(name)]
    if "instruct" in source and (count := source["instruct"]["left_out"]):
        said.append(f"{count:,} conversations with a special token's name in them, or a chunk longer than max_tokens")
    files = f"; {source['files_left_out']}" if "files_left_out" in source else ""
    return f"  {source['read']:,} documents read; left out: {', '.join(said) or 'none'}{files}" if "read" in source else ""


def draw(summary: dict[str, Any], file: Path) -> None:
    """Write the picture. Raises UserError where that cannot be done."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        make_figure(summary).savefig(file, dpi=150)
    except OSError as error:
        raise UserError(f"out={file.parent}: cannot be written: {error.strerror or error}") from None


def make_figure(summary: dict[str, Any]) -> Figure:
    """Every source's tokens by length of their document; a line where documents begin to count as long."""
    from matplotlib.figure import Figure

    sources = summary["sources"]
    figure = Figure(figsize=(7.2, 1.2 + 1.7 * len(sources)), layout="constrained")
    panels = figure.subplots(len(sources), 1, squeeze=False, sharex=True)[:, 0]
    for colour, axes, (name, source) in zip(_COLOURS * len(sources), panels, sources.items()):
        lower, _, tokens = zip(*source["histogram"])
        axes.bar(lower, tokens, width=[0.94 * edge for edge in lower], align="edge", color=colour)
        axes.axvline(summary["long"], color="0.4", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        share = f"{source['long_token_share']:.0%} in documents over {summary['long']:,}"
        axes.set_title(f"{name}: {source['tokens']:,} tokens, {share}", loc="left", fontsize=9)
        axes.set_ylabel("tokens", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    panels[-1].set_xlabel("length of the document, tokens", fontsize=8)
    return figure
