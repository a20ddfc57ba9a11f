"""Two ways through the code that a newcomer follows first, walked while they run: how long they are is what docs/architecture.md says."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import numpy as np
import pytest
import torch

import lit_long
from lit_long.batch import Batch
from lit_long.config import CorpusConfig, ModelConfig, OptimConfig, SourceConfig
from lit_long.data.datamodule import LongContextDataModule
from lit_long.data.prepare import prepare
from lit_long.data.readers import Text
from lit_long.positions import PositionalEncoder
from lit_long.training.module import LongContextModule

PACKAGE = Path(lit_long.__file__).parent
MODEL = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ffn=64, context=64)
BASE = 777_777.0


class Walk:
    """Counts calls of the package's functions that get something as an argument."""

    def __init__(self, carries: Any) -> None:
        self.carries = carries
        self.calls: Counter[tuple[str, str]] = Counter()
        self.entered: set[str] = set()

    def __enter__(self) -> Walk:
        sys.setprofile(self.see)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.setprofile(None)

    def see(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        file = Path(code.co_filename)
        if event != "call" or not file.is_relative_to(PACKAGE):
            return
        self.entered.add(str(file.relative_to(PACKAGE)))
        named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        seen = (str(file.relative_to(PACKAGE)), code.co_qualname)
        if any(self.carries(frame.f_locals.get(name)) for name in named):
            self.calls[seen] += 1

    @property
    def functions(self) -> list[tuple[str, str]]:
        """In the order of their first call."""
        return list(self.calls)

    @property
    def files(self) -> set[str]:
        return {file for file, _ in self.calls}


def is_content(value: Any, depth: int = 0) -> bool:
    """Whether a value holds a document: its text, its tokens, a batch, or what the model makes of them."""
    if isinstance(value, str):
        return "quokka" in value
    if isinstance(value, np.ndarray):
        return value.size > 8
    if isinstance(value, torch.Tensor):
        return value.numel() > 8
    if isinstance(value, (Batch, Text)):
        return True
    return depth < 2 and isinstance(value, (list, tuple)) and len(value) > 0 and is_content(value[0], depth + 1)


def is_position(value: Any) -> bool:
    """Whether a value is the settings of an encoder, or the encoder."""
    return (isinstance(value, dict) and value.get("base") == BASE) or (
        isinstance(value, PositionalEncoder) and value.base == BASE
    )


@pytest.fixture(scope="module")
def walks(tmp_path_factory) -> tuple[Walk, Walk]:
    """A document's way to its loss, and a base's to its tables: one update on one's own texts, up to its first loss."""
    folder = tmp_path_factory.mktemp("way")
    texts = [" ".join(f"quokka {row} sees river {row * column % 17}" for column in range(60)) for row in range(40)]
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    document, base = Walk(is_content), Walk(is_position)
    with document:
        prepare(
            CorpusConfig(vocab_size=512),
            folder / "store",
            sources={"mine": SourceConfig(path=str(folder / "in.jsonl"))},
            builtin=False,
            processes=1,
        )
    data = LongContextDataModule(
        folder / "store", weights={"mine": 1.0}, context=64, tokens_per_update=256, updates=1, validation_sequences=1
    )
    with base:
        module = LongContextModule(MODEL, {"scheme": "abf", "base": BASE}, OptimConfig(), updates=1)

    class Stop(Exception):
        pass

    class Both(Walk):
        def see(self, frame: FrameType, event: str, result: Any) -> None:
            document.see(frame, event, result)
            base.see(frame, event, result)

    def stop(*_: Any, **__: Any) -> None:
        sys.setprofile(None)
        raise Stop

    module.manual_backward = stop
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0
    )
    with Both(None), pytest.raises(Stop):
        trainer.fit(module, data)
    return document, base


def test_a_document_to_its_loss(walks):
    """18 files hold it, 37 run meanwhile: settings, what is known of each source, the trainer's own."""
    holding, entered = walks[0].files, walks[0].entered
    assert {"data/readers.py", "data/token_store.py", "training/module.py", "model/llama.py", "model/loss.py"} <= holding
    assert len(holding) <= 18 and len(entered) <= 37, sorted(holding) + sorted(entered - holding)


def test_a_base_to_cosines_and_sines(walks):
    """In the process of a stage. The encoder is built once; config's functions, which every setting goes through, are not counted."""
    functions = [(file, name) for file, name in walks[1].functions if not file.startswith("config/")]
    assert functions[0] == ("training/module.py", "LongContextModule.__init__")
    assert ("positions/encoder.py", "PositionalEncoder.cos_sin") in functions
    assert len(functions) <= 10, functions
    assert walks[1].calls["positions/__init__.py", "build"] == 1
