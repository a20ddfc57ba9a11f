"""Our own engine as generator and critic: the same replies whether or not it was interrupted, from a model of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lit_long.config import ModelConfig
from lit_long.data.tokenizer import train_tokenizer
from lit_long.generation.decode import Sequences
from lit_long.instruct.chunks import Item
from lit_long.instruct.generators import Local, Request
from lit_long.instruct.pipeline import PipelineConfig, Run
from lit_long.model.llama import Llama
from lit_long.positions import build
from lit_long.tokenizers.tokenizer import ModelTokenizer

TEXT = "The mill on the river was built by two sisters and burnt down in the same year."
TEMPLATE = "{% for m in messages %}<|u|>{{ m['content'] }}<|e|>{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"


@pytest.fixture(scope="module")
def words() -> ModelTokenizer:
    tokenizer = train_tokenizer([TEXT * 20, "correct wrong"], 300)
    tokenizer.add_special_tokens(["<|u|>", "<|a|>", "<|e|>"])
    reading = Tokenizer.from_str(tokenizer.to_str())
    return ModelTokenizer(reading, None, (reading.token_to_id("<|e|>"),), False, 0, TEMPLATE)


@pytest.fixture(scope="module")
def local(words: ModelTokenizer) -> Local:
    config = ModelConfig(vocab_size=310, d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16, d_ffn=64)
    model = Llama(config, build({"scheme": "rope", "base": 10_000.0}, 16))
    model.init_weights(0)
    return Local("tiny", "tiny", model, words, 256, batch=4, temperature=1.0, top_p=0.9)


def request(number: int, tokens: int = 12) -> Request:
    item = Item(number, "d", TEXT, 0, len(TEXT), "short", 0.5, number)
    return Request(f"generate/{number}", item, f"{TEXT} Ask {number}.", "<question>", ("</answer>",), tokens, 100 + number)


def test_an_interruption_changes_nothing(local: Local) -> None:
    every = [request(number) for number in range(10)]
    whole = {key: reply for replies in local.ask(every) for key, reply in replies.items()}
    parts = {
        key: reply for start in (0, 4, 8) for replies in local.ask(every[start : start + 4]) for key, reply in replies.items()
    }
    assert whole == parts and len(set(whole.values())) == 10
    assert all(reply.startswith("<question>") for reply in whole.values())
    assert [len(group) for group in local.groups(every)] == [4, 4, 2]


def test_what_does_not_fit_is_known(local: Local) -> None:
    assert local.fits(TEXT, 16) and not local.fits(TEXT * 40, 16)


@pytest.mark.parametrize("turns", [1, 2])
def test_every_request_fits_the_second_turn_s_too(turns: int, local: Local, words: ModelTokenizer, tmp_path: Path) -> None:
    """Chunks of more than the model reads are cut until the answer's prompt, with a question as long as a reply may be, fits."""
    asked, reader = [], Local("tiny", "tiny", local.model, words, 900, batch=4, temperature=1.0, top_p=0.9)

    class Replies:
        """The model's range, and questions of exactly ``max_new_tokens``."""

        name, identity, fits = "replies", {}, reader.fits

        def ask(self, requests):
            for request in requests:
                asked.append(request)
                question = f"{words.decode(words.tokenizer.encode(TEXT * 9, add_special_tokens=False).ids[:15])}?"
                yield {request.key: f"<question>{question}" if turns == 1 else question}

    items = [Item(n, f"d{n}", TEXT * 300, 0, len(TEXT) * 300, ("normal", "short")[n % 2], 0.5, n) for n in range(4)]
    config = PipelineConfig(n=4, turns=turns, max_new_tokens=16)
    Run(config, tmp_path, items, Replies(), None, {}, lambda message, share: None)()
    assert len(asked) == 8 and {request.key.split("/")[0] for request in asked} == {"generate", "answer"}
    for request in asked:
        assert reader.fits(request.prompt, 16) and 200 < len(request.item.chunk) < len(TEXT) * 300


def test_preference_is_that_of_the_first_token(local: Local) -> None:
    asked = request(0)
    logits = Sequences(local.model, [local.encoded(asked)], 1).read()[0].softmax(-1)
    first, second = (float(logits[local.tokenizer.tokenizer.encode(word).ids[0]]) for word in ("correct", "wrong"))
    assert local.preference(asked, ("correct", "wrong")) == pytest.approx(first / (first + second), rel=1e-4)


@pytest.mark.slow
def test_a_real_model_twice_the_same(tmp_path: Path) -> None:
    from tests.integration.mini import run

    corpus = ["data=builtin", "data.corpus.packages=[omegaconf]", "data.corpus.validation=[argparse,asyncio,email,json,typing]"]
    made = []
    for name in ("one", "two"):
        words = [
            "generate",
            "n=4",
            "planted=2",
            "turns=2",
            "chunk_tokens=200",
            "max_new_tokens=24",
            "critique_tokens=8",
            "domains=[docs]",
        ]
        done = run(
            "lit_long.instruct", *words, *corpus, "model=smollm2-135m", f"out={tmp_path / name}", f"root={tmp_path}", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        made.append((tmp_path / name / "examples.jsonl").read_text())
    assert made[0] == made[1]
    keys = {"document_id", "chunk_start", "chunk_end", "question", "answer", "kind", "verdict", "score"}
    assert all(keys <= set(json.loads(line)) for line in made[0].splitlines())
