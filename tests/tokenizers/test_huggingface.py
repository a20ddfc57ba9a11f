"""Tokenizers and chat templates in Hugging Face folders, and a bare tokenizer.model."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import sentencepiece_model_pb2_new as protocol

from lit_long.config import UserError
from lit_long.pretrained import open_pretrained
from lit_long.tokenizers import huggingface
from lit_long.tokenizers.sentencepiece import read_model
from tests.pretrained.llamas import random_llama, save
from tests.tokenizers.texts import CHAT, SENTENCEPIECE, TEXTS, spm_pieces, trained


def write_model(file, pieces=None, kind=2, **normal):
    model = protocol.ModelProto()
    for text, score, of in pieces or spm_pieces():
        model.pieces.add(piece=text, score=score, type=of)
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = kind, True
    model.normalizer_spec.name = "identity"
    for name, value in ({"add_dummy_prefix": True, "remove_extra_whitespaces": False} | normal).items():
        setattr(model.normalizer_spec, name, value)
    file.write_bytes(model.SerializeToString())


def test_bare_tokenizer_model(tmp_path):
    """Meta's Llama 2, and Hugging Face folders of its time: names and ids are Llama's own, tokens added later come after."""
    write_model(tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": len(spm_pieces())}))
    found = huggingface.read_tokenizer(tmp_path, 600)
    for text, ids in SENTENCEPIECE.items():
        assert found.encode(text) == [1, *ids], text
    assert (found.bos, found.eos, found.add_bos, found.separator) == (1, (2,), True, 1)
    assert found.special == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert found.encode("<pad>")[1:] == [len(spm_pieces())]
    with pytest.raises(UserError, match=r"embed_tokens\.weight only 295 rows"):
        huggingface.read_tokenizer(tmp_path, 295)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 900}))
    with pytest.raises(UserError, match=r"added_tokens\.json: token '<pad>' cannot have id 900"):
        huggingface.read_tokenizer(tmp_path, 1000)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": 1}, "not a SentencePiece model of Llama's kind"),
        ({"remove_extra_whitespaces": True}, "not a SentencePiece model of Llama's kind"),
        ({"precompiled_charsmap": b"x"}, "not a SentencePiece model of Llama's kind"),
    ],
)
def test_other_sentencepiece_models(tmp_path, options, words):
    write_model(tmp_path / "tokenizer.model", **options)
    with pytest.raises(UserError, match=words):
        read_model(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("content", [b"IQ== 0\nIg== 1\nIw== 2\n", b"", b"\x0a\xff\xff", bytes(range(256))])
def test_files_that_are_no_sentencepiece_model(tmp_path, content):
    """The first is how Llama 3's tokenizer.model begins."""
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.model: is not a SentencePiece model.*copy tokenizer\.json"):
        read_model(tmp_path / "tokenizer.model")


TEMPLATE = """{{- bos_token -}}
{% for message in messages %}
  {% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}
  {% if message.role == 'system' %}{% continue %}{% endif %}
{{ '[' + message.role + '] ' + message.content | trim }} {{ {'ä<': 1} | tojson }}
  {% generation %}!{% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}{{ eos_token }}"""


@pytest.fixture
def folder(tmp_path):
    """A folder as transformers saves it, Llama 3's way: bos from a post-processor, several ends, a template in a file of its own."""
    tokenizer = trained("llama-bpe", ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"))
    tokenizer.post_processor = processors.TemplateProcessing("<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **names)
    save(random_llama(vocab=600), tmp_path)
    fast.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    return tmp_path


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_hugging_face_folder(folder):
    found, theirs = open_pretrained(str(folder)).tokenizer(), AutoTokenizer.from_pretrained(folder)
    assert (found.bos, found.eos, found.add_bos, found.separator) == (0, (1, 2), True, 0)
    for text in TEXTS:
        assert found.encode(text) == theirs(text)["input_ids"]
        assert found.decode(found.encode(text)) == theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True)
    messages = [{"role": "system", "content": "x"}, *CHAT]
    for prompt in (True, False):
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert found.chat(messages, add_generation_prompt=prompt) == expected
        assert '{"ä<": 1}' in expected


def test_where_folders_keep_things(folder):
    """Special tokens as groups and in a file of their own, add_bos_token, and templates in a list."""
    settings = folder / "tokenizer_config.json"
    change(settings, add_bos_token=False, eos_token={"content": "<|eot_id|>", "special": True})
    (folder / "chat_template.jinja").unlink()
    change(
        settings, chat_template=[{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes {{ eos_token }}"}]
    )
    found = huggingface.read_tokenizer(folder, 600)
    assert (found.add_bos, found.eos, found.chat(CHAT)) == (False, (2, 1), "yes <|eot_id|>")
    settings.unlink()
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"})
    )
    found = huggingface.read_tokenizer(folder, 600)
    assert (found.bos, found.add_bos, found.eos, found.chat_template) == (0, True, (1, 2), None)


def test_separator(folder):
    """<|endoftext|> where there is one, else bos, else eos, else an error."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").unlink()
    change(folder / "config.json", eos_token_id=None)
    assert huggingface.read_tokenizer(folder, 600).separator == 0
    change(folder / "tokenizer_config.json", bos_token=None)
    assert huggingface.read_tokenizer(folder, 600).separator == 1
    change(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match="neither <|endoftext|> nor a bos nor an eos"):
        huggingface.read_tokenizer(folder, 600)
    assert tokenizer.token_to_id("<|endoftext|>") is None
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    change(folder / "tokenizer_config.json", bos_token="<|begin_of_text|>")
    assert huggingface.read_tokenizer(folder, 600).separator == tokenizer.token_to_id("<|endoftext|>")


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (TEMPLATE, [{"role": "tool", "content": "x"}], "no tools here"),
        ("{% if %}", CHAT, "cannot be parsed"),
        ("{{ messages[0].__class__.__mro__ }}", CHAT, "refuses these messages.*unsafe"),
        ("{{ messages.append(1) }}", CHAT, "refuses these messages.*unsafe"),
        (None, CHAT, "has no chat template"),
    ],
)
def test_chat_templates_that_fail(folder, template, messages, words):
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", chat_template=template)
    with pytest.raises(UserError, match=words) as caught:
        huggingface.read_tokenizer(folder, 600).chat(messages)
    assert str(folder) in str(caught.value)


def test_date_in_a_template(folder):
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}")
    assert int(huggingface.read_tokenizer(folder, 600).chat(CHAT)) >= 2024


@pytest.mark.parametrize("missing", [1, 200])
def test_more_ids_than_embeddings(folder, missing):
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    save(random_llama(vocab=ids), folder)
    open_pretrained(str(folder)).tokenizer()
    save(random_llama(vocab=ids - missing), folder)
    with pytest.raises(
        UserError, match=rf"its tokenizer has {ids} ids, but embed_tokens\.weight only {ids - missing} rows"
    ) as caught:
        open_pretrained(str(folder)).tokenizer()
    assert str(folder) in str(caught.value)


def test_no_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        huggingface.read_tokenizer(folder, 600)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer: neither tokenizer\.json nor tokenizer\.model"):
        huggingface.read_tokenizer(folder, 600)
