"""Llama-2-7B-32K-Instruct's data in small: rows of the schemas that its configuration reads, whose answers stand in their texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_long.config import StageConfig, UserError
from lit_long.config.compose import compose_data, parse_data_words
from lit_long.data.conversations import Encoder, to_canonical
from lit_long.data.token_store import Store
from lit_long.instruct.together import TogetherCommand, write_together

CONTEXT, ROWS = 768, 8


@pytest.fixture(scope="module")
def written(store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("together")
    counts = write_together(store, ["docs"], TogetherCommand(str(folder), ROWS, CONTEXT), lambda message, done: None)
    assert counts == dict.fromkeys(("sharegpt", "booksum", "mqa"), ROWS)
    return {name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()] for name in counts}


def test_the_configuration_reads_them_and_they_fit(store: Store, written: dict[str, list[dict]], tmp_path: Path) -> None:
    words = ["data=builtin_together_32k_instruct"]
    for name, rows in written.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words.append(f"data.sources.{name}.path={tmp_path / f'{name}.jsonl'}")
    sources = compose_data(parse_data_words(words, StageConfig), lambda init: None).data.sources
    encoder = Encoder(store.tokenizer, store.separator)
    for name, rows in written.items():
        lengths = [len(encoder(to_canonical(name, sources[name], row, "jsonl")).tokens) for row in rows]
        assert len(lengths) == ROWS and max(lengths) <= CONTEXT and len(set(lengths)) > ROWS // 2


def test_answers_stand_in_their_texts(written: dict[str, list[dict]]) -> None:
    places = []
    for row in written["mqa"]:
        text, _, asked = row["prompt"].rpartition("\n\nQuestion: ")
        quoted = asked.split('"')[1]
        assert row["completion"].startswith(quoted) and text.count(quoted) == 1 and row["completion"] in text
        places.append(text.index(quoted) / len(text))
    assert max(places) - min(places) > 0.4
    for row in written["booksum"]:
        assert row["chapter"].count("Part ") >= 3 and row["summary_text"].split(". ")[0] in row["chapter"]
    for row in written["sharegpt"]:
        said = row["conversations"]
        assert [turn["from"] for turn in said] == ["human", "gpt"] * (len(said) // 2)
        assert all(turn["value"] in said[0]["value"] for turn in said[1::2])


def test_bad_commands() -> None:
    with pytest.raises(UserError, match="out=DIR is missing"):
        TogetherCommand().check()
    with pytest.raises(UserError, match="context=200 is too short"):
        TogetherCommand("x", context=200).check()
