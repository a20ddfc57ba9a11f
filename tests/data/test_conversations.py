"""Instruction data: which tokens are answers, what they weigh in the loss, and that no conversation is cut or sees another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_long.batch import NO_LOSS, PADDING, Batch
from lit_long.config import CorpusConfig, InstructConfig, ModelConfig, SourceConfig, StageConfig, UserError
from lit_long.data.conversations import ChatTemplate, Encoder
from lit_long.data.datamodule import LongContextDataModule
from lit_long.data.held_out import held_out_sequences
from lit_long.data.mixture import Recipe, describe_plan, make_mixtures, plan_tokens
from lit_long.data.packing import PackedDocuments
from lit_long.data.prepare import prepare
from lit_long.data.token_store import Store, open_store, verify
from lit_long.data.tokenizer import train_tokenizer
from lit_long.model.llama import Llama
from lit_long.positions import build

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPOKEN = "the river runs past seven old mills and nobody counts them since the war ended in spring"


def say(number: int, count: int) -> str:
    words = SPOKEN.split(" ")
    return " ".join(words[(number * 7 + i * 3) % len(words)] for i in range(count)) + f" {number}."


def chats(count: int = 40) -> list[dict]:
    rows = []
    for n in range(count):
        turns = [{"from": "system", "value": "Be brief."}] if n % 3 == 0 else []
        for turn in range(1 + n % 3):
            turns += [
                {"from": "human", "value": say(n + turn, 4 + n % 9)},
                {"from": "gpt", "value": say(n * 5 + turn, 3 + n % 5)},
            ]
        rows.append({"conversations": turns})
    return rows


def questions(count: int = 12) -> list[dict]:
    rows = []
    for n in range(count):
        document = " ".join(say(n * 100 + i, 10) for i in range(60))
        start = (n * 211) % (len(document) - 100)
        rows.append(
            {"document": document, "chunk_start": start, "chunk_end": start + 90, "depth": n / (count - 1)}
            | {"kind": ("normal", "short")[n % 2], "question": f"What of {n}?", "answer": f"The answer is {say(n, 4)}"}
        )
    return rows


def write(file: Path, rows: list[dict]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def sources(folder: Path, **qa: object) -> dict[str, SourceConfig]:
    plain = [{"text": " ".join(say(n * 31 + i, 12) for i in range(20))} for n in range(20)]
    return {
        "chat": SourceConfig(write(folder / "chat.jsonl", chats()), validation_share=0.1, instruct=InstructConfig("sharegpt")),
        "qa": SourceConfig(
            write(folder / "qa.jsonl", questions()),
            validation_share=0.1,
            instruct=InstructConfig("qa", max_tokens=256, packing="single"),
        ),
        "text": SourceConfig(write(folder / "text.jsonl", plain), validation_share=0.1),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("conversations")
    prepare(CorpusConfig(vocab_size=400), folder / "store", sources=sources(folder), builtin=False, processes=1)
    return open_store(folder / "store")


def slow_weights(store: Store, document: np.ndarray, prompt: float, answer: float) -> list[float]:
    """The obvious way: decode token by token, and look who speaks at each target's first character. Plain template."""
    tokenizer, speaker, found, text = store.tokenizer, "prompt", [], ""
    ids = [*document[1:].tolist(), None]
    for token in ids:
        before = text
        if token is not None:
            text = tokenizer.decode([i for i in ids[: len(found) + 1] if i is not None], skip_special_tokens=False)
        said = before + text[len(before) :][:1]
        lines = said.split("\n")
        if lines[-1] == "" and len(lines) > 1 and not before.endswith("\n"):
            lines = lines[:-1]  # the line end itself belongs to who wrote the line
        speaker = "answer" if lines[-1].startswith("Assistant:") and len(lines[-1]) > len("Assistant:") else "prompt"
        if token is None:
            speaker = "answer"
        found.append(answer if speaker == "answer" else prompt)
    return found


@pytest.mark.parametrize(("prompt", "answer"), [(0.0, 1.0), (1.0, 1.0), (0.25, 1.0)])
def test_masks_equal_the_obvious_ones(store: Store, prompt: float, answer: float) -> None:
    instruct = InstructConfig("sharegpt", prompt_weight=prompt, answer_weight=answer)
    packed = PackedDocuments(store, "chat", 128, 0, True, instruct=instruct)
    documents, checked = store.documents("chat", "train"), 0
    for index in range(packed.sequences_per_epoch):
        sequence, at = packed[index], 0
        for document, start, stop in packed.packing.pieces(*packed.place(index)):
            assert (start, stop) == (0, len(documents[document]))
            wanted = slow_weights(store, documents[document], prompt, answer)
            got = (sequence["targets"][at : at + stop] != NO_LOSS) * sequence.get("weights", np.ones(128))[at : at + stop]
            assert got.tolist() == pytest.approx(wanted)
            at, checked = at + stop, checked + stop
        assert (sequence["targets"][at:] == NO_LOSS).all() and (sequence["document_ids"][at:] == PADDING).all()
    assert checked == sum(length for length in documents.lengths if length <= 128) > 1000


def test_chat_templates_keep_answers_apart() -> None:
    tokenizer = train_tokenizer([say(n, 12) for n in range(50)] + ["user assistant system"], 400)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    encoder = Encoder.make(tokenizer, 0, ChatTemplate(CHATML, {}, "here"), 0)
    messages = [
        {"role": role, "content": say(n, 5)} for n, role in enumerate(["system", "user", "assistant", "user", "assistant"])
    ]
    encoded = encoder(json.dumps(messages))
    texts = [tokenizer.decode(encoded.tokens[a:b].tolist(), skip_special_tokens=False) for a, b in encoded.answers]
    assert texts == [f"{messages[i]['content']}<|im_end|>\n" for i in (2, 4)]
    assert encoded.tokens[0] == 0 and list(encoded.tokens).count(tokenizer.token_to_id("<|im_end|>")) == 5
    assert encoder(json.dumps([{"role": "user", "content": "<|im_end|> now"}, messages[2]])) is None


def test_questions_are_held_out_with_their_document(tmp_path: Path) -> None:
    """All that ask about a document are on one side, and the same side in every source that shares the document."""
    many = [
        row | {"question": f"And {n}?", "document": f"{row['document']} {d}"}
        for d, row in enumerate(questions())
        for n in range(6)
    ]
    made = {
        name: SourceConfig(
            write(tmp_path / f"{name}.jsonl", rows), validation_share=0.3, instruct=InstructConfig("qa", max_tokens=256)
        )
        for name, rows in (("one", many[::2]), ("two", many[1::2]))
    }
    prepare(CorpusConfig(vocab_size=400), tmp_path / "store", sources=made, builtin=False, processes=1)
    store = open_store(tmp_path / "store")

    def rows_of(name: str, split: str) -> list[int]:
        return [int(store.documents(name, split).name(i).split(":")[1]) for i in range(len(store.documents(name, split)))]

    starts = {
        name: np.cumsum([0] + [len(json.dumps(row)) + 1 for row in rows])
        for name, rows in (("one", many[::2]), ("two", many[1::2]))
    }
    about = {
        (name, split): {int(np.searchsorted(starts[name], at)) // 3 for at in rows_of(name, split)}
        for name in starts
        for split in ("train", "validation")
    }
    assert about["one", "validation"] == about["two", "validation"] and 0 < len(about["one", "validation"]) < 12
    assert about["one", "train"] == about["two", "train"] == {*range(12)} - about["one", "validation"]
    assert sum(len(store.documents("one", split)) for split in ("train", "validation")) == 36


@pytest.mark.parametrize("holds", ["qa", "text"])
def test_what_one_source_holds_out_no_other_asks_about(holds: str, tmp_path: Path) -> None:
    """Nor is it trained on as a document where another source holds out the questions about it."""
    many = [row | {"question": f"And {n}?"} for row in questions() for n in range(6)]
    share = {"qa": 0.0, "text": 0.0, "more": 0.0} | {holds: 0.3}
    files = {"qa": many[::2], "more": many[1::2], "text": [{"text": row["document"]} for row in questions()]}
    made = {
        name: SourceConfig(
            write(tmp_path / f"{name}.jsonl", rows),
            validation_share=share[name],
            instruct=InstructConfig() if name == "text" else InstructConfig("qa", max_tokens=256),
        )
        for name, rows in files.items()
    }
    prepare(CorpusConfig(vocab_size=400), tmp_path / "store", sources=made, builtin=False, processes=1)
    store = open_store(tmp_path / "store")

    def documents_of(name: str, split: str) -> set[str]:
        found, content = store.documents(name, split), Path(made[name].path).read_bytes()
        rows = [json.loads(content[int(found.name(i).split(":")[1]) :].split(b"\n")[0]) for i in range(len(found))]
        return {row.get("document") or row["text"] for row in rows}

    held, everything = documents_of(holds, "validation"), {row["document"] for row in questions()}
    assert 0 < len(held) < len(everything)
    assert all(documents_of(name, "train") == everything - held for name in made)
    counts = {name: store.sources[name]["held_out_elsewhere"] for name in made if name != holds}
    assert counts == {name: len(held) * (1 if name == "text" else 3) for name in counts}


def test_conversations_without_an_answer_are_counted(tmp_path: Path) -> None:
    silent = [{"conversations": [{"from": "human", "value": say(n, 5)}]} for n in range(7)]
    source = SourceConfig(write(tmp_path / "in.jsonl", [*chats(), *silent]), instruct=InstructConfig("sharegpt"))
    prepare(CorpusConfig(vocab_size=400), tmp_path / "store", sources={"chat": source}, builtin=False, processes=1)
    account = open_store(tmp_path / "store").sources["chat"]
    assert (account["read"], account["unanswered"]) == (47, 7)
    source = SourceConfig(write(tmp_path / "none.jsonl", silent), instruct=InstructConfig("sharegpt"))
    with pytest.raises(UserError, match=r"none of the 7 documents .* is left \(7 without an answer\)\. Change instruct\.schema"):
        prepare(CorpusConfig(vocab_size=400), tmp_path / "other", sources={"chat": source}, builtin=False, processes=1)


def test_where_nothing_is_left_the_remedy_is_that_of_most_rows(tmp_path: Path) -> None:
    long = [row | {"chunk_start": 0, "chunk_end": 590} for row in questions()]
    long[0]["answer"] = " "
    source = SourceConfig(write(tmp_path / "in.jsonl", long), instruct=InstructConfig("qa", max_tokens=60))
    with pytest.raises(UserError, match=r"\(1 without an answer, 11 conversations left out\)\. Raise instruct\.max_tokens"):
        prepare(CorpusConfig(vocab_size=400), tmp_path / "store", sources={"qa": source}, builtin=False, processes=1)


def test_questions_keep_their_chunk_and_their_depth(store: Store) -> None:
    account = store.sources["qa"]["instruct"]
    assert account["left_out"] == 0 and account["cut"] == 12 and min(account["depths"][0], account["depths"][-1]) >= 1
    encoder, separator = Encoder(store.tokenizer, store.separator, None, 256), store.separator
    for row in questions():
        encoded = encoder(json.dumps(row))
        text = store.tokenizer.decode(encoded.tokens[1:].tolist(), skip_special_tokens=False)
        (first, stop) = encoded.answers[-1]
        assert row["document"][row["chunk_start"] : row["chunk_end"]] in text and len(encoded.tokens) <= 256
        assert store.tokenizer.decode(encoded.tokens[first:stop].tolist()) == f" {row['answer']}\n"
        assert encoded.tokens[0] == separator and len(encoded.tokens) > 240


def test_nothing_is_seen_across_examples(store: Store) -> None:
    config = ModelConfig(vocab_size=400, d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16, d_ffn=64)
    model = Llama(config, build({"scheme": "rope", "base": 10_000.0}, 16))
    model.init_weights(0)
    packed = PackedDocuments(store, "chat", 256, 0, True, instruct=InstructConfig("sharegpt"))
    rows = [packed[i] for i in range(3)]
    arrays = [
        torch.from_numpy(np.stack([row[name] for row in rows])) for name in ("tokens", "targets", "document_ids", "positions")
    ]
    batch = Batch(*arrays)
    first = batch.document_ids == 0
    other = batch._replace(tokens=torch.where(first, (batch.tokens + 7) % 400, batch.tokens))
    with torch.no_grad():
        before, after = model.logits(batch), model.logits(other)
    rest = (batch.document_ids > 0).nonzero(as_tuple=True)
    assert len(rest[0]) > 200
    torch.testing.assert_close(before[rest], after[rest], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(before[first], after[first], atol=1e-2)


def test_weights_scale_the_loss_and_its_divisor(store: Store) -> None:
    config = ModelConfig(vocab_size=400, d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=16, d_ffn=64)
    model = Llama(config, build({"scheme": "rope", "base": 10_000.0}, 16), loss_chunk=100)
    model.init_weights(0)
    recipe = Recipe({"chat": 1.0, "text": 1.0}, instruct={"chat": InstructConfig("sharegpt", prompt_weight=0.25)})
    module = LongContextDataModule(
        store, weights=recipe.weights, context=128, tokens_per_update=512, updates=2, instruct=recipe.instruct
    )
    batch = next(iter(module.train_dataloader()))
    assert set(batch.weights.unique().tolist()) >= {0.25, 1.0}
    nats, tokens = model(batch)
    every, _ = model(batch, per_token=True)
    torch.testing.assert_close(nats, (every * batch.weights).sum(), rtol=1e-5, atol=1e-3)
    assert tokens == batch.loss_tokens() == batch.weights[batch.targets != NO_LOSS].sum()
    halves = [model(batch.rows(start, start + 2)) for start in (0, 2)]
    torch.testing.assert_close(sum(n for n, _ in halves), nats)
    assert sum(t for _, t in halves) == tokens


@pytest.mark.parametrize("prompt_weight", [0.25, 1.0])
def test_the_divisor_may_be_the_number_of_answer_tokens(store: Store, prompt_weight: float) -> None:
    """Loss and gradients are those of torch's own cross-entropy: (Σ answers + w · Σ prompts) / answers, where plain text is all answers."""
    config = ModelConfig(vocab_size=400, d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=16, d_ffn=64)
    model = Llama(config, build({"scheme": "rope", "base": 10_000.0}, 16), loss_chunk=100)
    model.init_weights(0)

    def batch_with(**loss: object) -> Batch:
        instruct = {"chat": InstructConfig("sharegpt", **loss)}
        common = {"context": 128, "tokens_per_update": 1024, "updates": 2, "instruct": instruct}
        return next(iter(LongContextDataModule(store, weights={"chat": 0.8, "text": 0.2}, **common).train_dataloader()))

    answers = batch_with().targets  # of which another test says that they are the answers
    batch = batch_with(prompt_weight=prompt_weight, divisor="answers")
    each_BT = torch.nn.functional.cross_entropy(model.logits(batch).transpose(1, 2), batch.targets, reduction="none")
    answered_BT = answers != NO_LOSS
    assert 50 < answered_BT.sum() < (batch.targets != NO_LOSS).sum() - 50
    wanted = (each_BT[answered_BT].sum() + prompt_weight * each_BT[~answered_BT].sum()) / answered_BT.sum()
    nats, tokens = model(batch)
    assert tokens == batch.loss_tokens() == answered_BT.sum()
    torch.testing.assert_close(nats / tokens, wanted, rtol=1e-5, atol=1e-4)
    found = torch.autograd.grad(nats / tokens, [*model.parameters()])
    for mine, torchs in zip(found, torch.autograd.grad(wanted, [*model.parameters()]), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-6)
    assert sum(batch.rows(start, start + 4).loss_tokens() for start in (0, 4)) == tokens
    # In the usual form the same sum is divided by all weights: answers and prompts pull in the same ratio.
    usual = batch_with(prompt_weight=prompt_weight)
    assert model(usual)[0] == nats and usual.loss_tokens() == pytest.approx(
        float(answered_BT.sum() + prompt_weight * (~answered_BT & (batch.targets != NO_LOSS)).sum())
    )


def test_plain_sources_are_what_they_were(store: Store) -> None:
    row = PackedDocuments(store, "text", 64, 0, True)[0]
    assert "weights" not in row and (row["targets"] != NO_LOSS).all()


def test_held_out_answers_are_the_same_at_every_length(store: Store) -> None:
    long, short = (held_out_sequences(store, "qa", length, 4, 256) for length in (256, 64))
    assert len(long.tokens) == len(short.tokens) >= 1
    for batch in (long, short):
        assert (batch.targets != NO_LOSS).any(dim=1).all()
    assert [t[t != NO_LOSS].tolist() for t in long.targets] == [t[t != NO_LOSS].tolist() for t in short.targets]


def test_damaged_answers_are_found(tmp_path: Path) -> None:
    prepare(CorpusConfig(vocab_size=300), tmp_path / "store", sources=sources(tmp_path), builtin=False, processes=1)
    made = open_store(tmp_path / "store")
    assert verify(made) == []
    file = tmp_path / "store" / "chat" / "shards" / "000000.answers"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(bytes(content))
    assert verify(made)


@pytest.mark.parametrize(
    ("instruct", "message"),
    [
        (InstructConfig("chats"), "did you mean|known here"),
        (InstructConfig("prompt", prompt="{a}"), "two templates"),
        (InstructConfig("messages", answer_weight=0.0), "must be above 0"),
        (InstructConfig("messages", answer_weight=0.0, prompt_weight=1.0, divisor="answers"), "nothing to divide by"),
        (InstructConfig("messages", divisor="answer"), "did you mean"),
        (InstructConfig("messages", template="chat"), "no chat template"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, instruct: InstructConfig, message: str) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"b{n}"}]} for n in range(9)]
    source = SourceConfig(write(tmp_path / "rows.jsonl", rows), instruct=instruct)
    with pytest.raises(UserError, match=message):
        prepare(CorpusConfig(vocab_size=300), tmp_path / "store", sources={"s": source}, builtin=False, processes=1)


def test_long_conversations_are_left_out_whole(store: Store) -> None:
    (mixture,) = make_mixtures(
        store, Recipe({"qa": 1.0}, instruct={"qa": InstructConfig("qa", packing="single")}), [_phase(256)], 256
    )
    assert mixture.sources["qa"].sequences_per_epoch == (store.documents("qa", "train").lengths <= 256).sum()
    with pytest.raises(
        UserError, match=r"no conversation of 'qa' fits context=100: the shortest has 2\d\d tokens.*instruct\.max_tokens"
    ):
        PackedDocuments(store, "qa", 100, 0, True, instruct=InstructConfig("qa"))


def _phase(context: int):
    from lit_long.data.curriculum import Phase

    return Phase(0, 1, context)


def test_the_recipe_of_llama_2_7b_32k_instruct(tmp_path: Path) -> None:
    """Its configuration, over small data of the same schemas: shares of tokens, whole conversations, answers as they were written."""
    from lit_long.config.compose import compose_data, parse_data_words

    book = [
        {"chapter": " ".join(say(n * 50 + i, 9) for i in range(12)), "summary_text": f"In short, {say(n, 6)}"} for n in range(30)
    ]
    many = [{"prompt": " ".join(say(n * 9 + i, 9) for i in range(15)) + " Who?", "completion": say(n, 2)} for n in range(30)]
    paths = {"sharegpt": chats(60), "booksum": book, "mqa": many}
    words = ["data=together_32k_instruct", "data.corpus.vocab_size=400"]
    words += [f"data.sources.{name}.path={write(tmp_path / f'{name}.jsonl', rows)}" for name, rows in paths.items()]
    data = compose_data(parse_data_words(words, StageConfig), lambda init: (_ for _ in ()).throw(AssertionError)).data
    prepare(data.corpus, tmp_path / "store", sources=data.sources, builtin=False, processes=1)
    instruct = {name: source.instruct for name, source in data.sources.items()}
    module = LongContextDataModule(
        tmp_path / "store",
        weights=data.weights,
        context=256,
        tokens_per_update=2048,
        updates=40,
        instruct=instruct,
        packing=data.packing,
    )
    taken = sum(batch.account[:, 1].double() @ torch.eye(3)[batch.account[:, 0]].double() for batch in module.train_dataloader())
    shares = dict(zip(module.mixed, (taken / taken.sum()).tolist(), strict=True))
    assert shares == pytest.approx({"booksum": 0.25, "mqa": 0.25, "sharegpt": 0.5}, abs=0.03)
    documents = open_store(tmp_path / "store").documents("booksum", "train")
    first, stop = documents.answers(0)[0]
    text = module.store.tokenizer.decode(documents[0][first:stop].tolist())
    assert text.strip() in {row["summary_text"] for row in book}


def test_how_many_conversations_have_no_room_is_said_before_training(store: Store) -> None:
    recipe = Recipe({"chat": 0.5, "text": 0.5}, instruct={"chat": InstructConfig("sharegpt")})
    longer = {size: int((store.documents("chat", "train").lengths > size).sum()) for size in (64, 4096)}
    assert longer[64] > 0 == longer[4096]
    for size, count in longer.items():
        phases = [_phase(size)]
        planned = plan_tokens(make_mixtures(store, recipe, phases, size), phases, size, 0)
        assert planned["chat"].get("no_room", 0) == count and "no_room" not in planned["text"]  # which is cut instead
        said = f"; {count} conversations of chat have no room in a sequence"
        assert describe_plan(planned).endswith(said) if count else "no room" not in describe_plan(planned)
