"""Generation on the CPU: ours against transformers' `generate`, the same weights and precision in the same run.

SmolLM2-135M's shape with random weights. Decoding: tokens/s after a prompt of 128 tokens. Reading a prompt of 8,192 tokens: time and peak
memory, each in a process of its own. In bf16 too where the processor computes it.

make bench, or python -m tests.benchmarks.bench_generation FILE.json to have the rows in a file
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from lit_long.config import ModelConfig, TrainerConfig
from lit_long.generation import generate, prepack
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.processor import describe_machine
from lit_long.stages.resolve import resolve_precision
from tests.integration.mini import REPOSITORY

SHAPE = ModelConfig(49_152, 576, 30, 9, 3, 64, 1536, 1e-5, True, 8192, 100_000.0)
NATIVE = resolve_precision(TrainerConfig()) == "bf16-mixed"
DTYPES = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if NATIVE else {})
PROMPT, NEW, ROUNDS = 128, 64, 2
LONG = 8192
DECODE_TARGET, READ_TARGET, MEMORY_TARGET = 1.3, 1.0, 1.0
Row = dict[str, Any]


def ours(dtype: torch.dtype, layers: int = SHAPE.n_layers) -> Llama:
    shape = ModelConfig(**{**vars(SHAPE), "n_layers": layers})
    with in_precision(dtype):
        model = Llama(shape, build({"scheme": "rope", "base": SHAPE.rope_base}, SHAPE.head_dim))
    model.init_weights(0)
    return model.requires_grad_(False)


def theirs(dtype: torch.dtype, layers: int = SHAPE.n_layers) -> LlamaForCausalLM:
    with in_precision(dtype):
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=SHAPE.vocab_size,
                hidden_size=SHAPE.d_model,
                intermediate_size=SHAPE.d_ffn,
                num_hidden_layers=layers,
                num_attention_heads=SHAPE.n_heads,
                num_key_value_heads=SHAPE.n_kv_heads,
                head_dim=SHAPE.head_dim,
                rms_norm_eps=SHAPE.norm_eps,
                tie_word_embeddings=True,
                max_position_embeddings=SHAPE.context,
                rope_parameters={"rope_type": "default", "rope_theta": SHAPE.rope_base},
            )
        ).eval()


class in_precision:  # noqa: N801
    """Parameters are made in ``dtype``, without a copy in fp32 that would count as memory."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(torch.float32)


def their_tokens(model: LlamaForCausalLM, rows: torch.Tensor, new: int) -> list[list[int]]:
    model.generation_config.eos_token_id = None
    ways = dict(attention_mask=torch.ones_like(rows), max_new_tokens=new, do_sample=False, pad_token_id=0)
    return model.generate(rows, **ways)[:, rows.shape[1] :].tolist()


def row(name: str, mine: float, peers: float, ratio: float, target: float, unit: str) -> Row:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    found = {"name": name, "peer": "transformers generate", "ours": mine, "theirs": peers, "ratio": ratio, "target": target}
    found |= {
        "unit": unit,
        "threads": torch.get_num_threads(),
        "machine": describe_machine(torch.device("cpu")),
        "versions": versions,
    }
    verdict = "" if ratio >= target else "   BELOW TARGET"
    print(f"{name}: {mine:,.1f} {unit}, transformers {peers:,.1f}, {ratio:.2f} × (target {target:g}){verdict}", flush=True)
    return found


def decode_row(precision: str, sequences: int, rounds: int = ROUNDS) -> Row:
    """Tokens per second after the prompt: the best round of each, in turn so that both meet the same machine."""
    dtype = DTYPES[precision]
    peer, model = theirs(dtype), ours(dtype)
    state = {name.removeprefix("model."): value for name, value in peer.state_dict().items() if name != "lm_head.weight"}
    model.load_state_dict(state)
    prepack(model, sequences)
    prompt = torch.randint(SHAPE.vocab_size, (sequences, PROMPT), generator=torch.Generator().manual_seed(0))
    steps: tuple[Callable, ...] = (lambda new: generate(model, prompt.tolist(), new), lambda new: their_tokens(peer, prompt, new))
    best = [[float("inf"), float("inf")] for _ in steps]
    tokens: dict[tuple[int, int], Any] = {}
    for _ in range(rounds):
        for who, step in enumerate(steps):
            for which, new in enumerate((1, 1 + NEW)):
                start = time.perf_counter()
                tokens[who, which] = step(new)
                best[who][which] = min(best[who][which], time.perf_counter() - start)
    mine, peers = (sequences * NEW / (long - short) for short, long in best)
    if precision == "fp32" and tokens[0, 0] != tokens[1, 0]:  # later ones may part: random weights make near ties
        raise RuntimeError("the two generate different tokens: they do not do the same work")
    return row(f"decode, {precision}, batch {sequences}", mine, peers, mine / peers, DECODE_TARGET, "tokens/s")


def read_rows(precision: str, tokens: int = LONG, layers: int = SHAPE.n_layers, rounds: int = 2) -> list[Row]:
    """Time and peak memory of reading one long prompt, the least of the rounds."""
    runs = [{who: read_alone(who, precision, tokens, layers) for who in ("ours", "theirs")} for _ in range(rounds)]
    seconds, memory = (
        {who: min(run[who][what] for run in runs) for who in ("ours", "theirs")} for what in ("seconds", "mebibytes")
    )
    speed = {who: tokens / second for who, second in seconds.items()}
    name = f"prompt of {tokens:,}, {precision}"
    ratio = memory["theirs"] / memory["ours"]
    return [
        row(name, speed["ours"], speed["theirs"], speed["ours"] / speed["theirs"], READ_TARGET, "tokens/s"),
        row(f"{name}, peak memory", memory["ours"], memory["theirs"], ratio, MEMORY_TARGET, "MiB"),
    ]


def read_alone(who: str, precision: str, tokens: int, layers: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_generation", "read", who, precision, str(tokens), str(layers)]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def read_here(who: str, precision: str, tokens: int, layers: int) -> dict[str, float]:
    """Seconds, and the peak of this process over what it had before there was a model (both libraries imported)."""
    before = peak_mebibytes()
    prompt = torch.randint(SHAPE.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    if who == "ours":
        model = ours(DTYPES[precision], layers)
        prepack(model, 1)
        read = lambda rows: generate(model, rows.tolist(), 1)  # noqa: E731
    else:
        peer = theirs(DTYPES[precision], layers)
        read = lambda rows: their_tokens(peer, rows, 1)  # noqa: E731
    read(prompt[:, :64])
    start = time.perf_counter()
    read(prompt)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "mebibytes": peak_mebibytes() - before}


def peak_mebibytes() -> float:
    """This process' largest resident memory so far. (getrusage would count what it was born with, the parent's.)"""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("sequences", [1, 8])
def test_decoding(precision, sequences):
    print()
    decode_row(precision, sequences)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("precision", DTYPES)
def test_reading_a_long_prompt(precision):
    print()
    read_rows(precision)


def main(argv: list[str]) -> None:
    if argv and argv[0] == "read":
        print(json.dumps(read_here(argv[1], argv[2], int(argv[3]), int(argv[4]))))
        return
    rows = [decode_row(precision, sequences) for precision in DTYPES for sequences in (1, 8)]
    rows += [found for precision in DTYPES for found in read_rows(precision)]
    if argv:
        Path(argv[0]).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
