"""Resume points on two ranks, four and one; in the background; when the disk is full. The oracle is the run that nothing interrupts."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from lit_long.config import CorpusConfig, SourceConfig, UserError
from lit_long.data.prepare import prepare
from lit_long.pretrained.weights import read_checkpoint
from lit_long.training.resume import OneFile, ShardedPoints, Writer, assemble, newest_checkpoint
from lit_long.training.run import train
from tests.data.own import TEXTS, write_text
from tests.integration.mini import REPOSITORY
from tests.planning.test_inference import Peak
from tests.ranks import run_ranks
from tests.training import killed
from tests.training.resume_ranks import STOP, UPDATES, run, stop

HERE = Path(__file__).parent


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, UPDATES + 1))
    return [row["train/loss"] for row in rows]


def validations(folder: Path) -> list[dict[str, float]]:
    """Step and losses of each."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key != "time"} for row in rows if any(key.startswith("val/") for key in row)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def assert_equal(ours: Path, theirs: Path) -> None:
    """To the last bit."""
    assert losses(ours) == losses(theirs) and validations(ours) == validations(theirs)
    assert [row["step"] for row in validations(ours)] == [UPDATES // 2, UPDATES]
    found, expected = weights(ours), weights(theirs)
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)


def assert_close(ours: Path, theirs: Path) -> None:
    """But for the order of sums, which depends on the number of ranks."""
    assert losses(ours) == pytest.approx(losses(theirs), abs=2e-5)
    found, expected = weights(ours), weights(theirs)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """``store``; ``one``, a run on one device; ``from one``, which one device left after five updates; and all that two ranks did."""
    folder = tmp_path_factory.mktemp("resume")
    texts = {"long": [text for text in TEXTS if len(text) > 500][:6], "short": [text for text in TEXTS if len(text) < 500][:12]}
    sources = {name: SourceConfig(path=str(write_text(folder / name, texts[name])), validation_share=0.1) for name in texts}
    prepare(CorpusConfig(vocab_size=300), folder / "store", sources=sources, builtin=False, processes=1)
    assert run(folder / "one", folder / "store", 1)[0] == ""
    assert "after update 5 of 8" in run(folder / "from one", folder / "store", 1, stop, checkpoint_async="always")[0]
    assert newest_checkpoint(folder / "from one" / "checkpoints").is_file()
    shutil.copytree(folder / "from one", folder / "from one to four")
    run_ranks(
        2,
        HERE / "resume_ranks.py",
        folder / "store",
        folder,
        "straight",
        "sync",
        "background",
        "full",
        "validation",
        "nan",
        "from one",
    )
    return folder


def test_two_ranks_compute_what_one_does(place):
    assert_close(place / "straight", place / "one")
    ours, theirs = weights(place / "straight"), weights(place / "one")
    assert any(not ours[name].equal(theirs[name]) for name in ours), "was it one rank?"


@pytest.mark.parametrize("name", ["sync", "background", "full", "validation"])
def test_interrupted_is_uninterrupted(place, name):
    """Asked to end, written beside training, and stopped by a full disk: to the last bit. What stays is checked by the ranks themselves."""
    assert_equal(place / name, place / "straight")


def test_the_file_of_one_device_goes_on_on_two_ranks(place):
    assert_close(place / "from one", place / "straight")


@pytest.mark.parametrize("name", ["sync", "background"])
def test_the_folder_of_two_ranks_goes_on_on_one_device(place, tmp_path, name):
    folder = shutil.copytree(place / f"{name} copy", tmp_path / name)
    assert newest_checkpoint(folder / "checkpoints").is_dir()
    assert run(folder, place / "store", 1)[0] == ""
    assert_close(folder, place / "straight")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["perf/seconds"] > 0 for row in rows if row["step"] == STOP] == [True], (
        "the update before the stop is measured once"
    )


def test_killed_within_a_validation_is_uninterrupted(place, tmp_path):
    """After the checkpoint of its update, in mid-training and at the end: it is measured when the stage goes on, with that update's encoder."""
    settings, folder = killed.stage(), tmp_path / "killed"
    folder.mkdir()
    updates = map(str, (UPDATES // 2, UPDATES))
    words = [sys.executable, "-m", "tests.as_stage", HERE / "killed.py", place / "store", folder, *updates]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = []
    for out in (folder, tmp_path / "straight"):
        out.mkdir(exist_ok=True)
        results.append(train(settings, out, place / "store", None, lambda *_: None))
    assert_equal(folder, tmp_path / "straight")
    assert results[0]["validation"] == results[1]["validation"]
    metrics = (folder / "metrics.jsonl").read_text()
    (folder / "weights.safetensors").unlink()  # killed once more, with all measured
    assert train(settings, folder, place / "store", None, lambda *_: None)["validation"] == results[1]["validation"]
    assert (folder / "metrics.jsonl").read_text() == metrics


CUT = """
import os, signal, sys
from pathlib import Path
from tests.training.resume_ranks import run

def write(file, content, **_):
    with file.open("w") as part:
        part.write(content[: len(content) // 3])
    os.kill(os.getpid(), signal.SIGKILL)

def truncate(file, size, own=os.truncate):
    own(file, size)
    os.kill(os.getpid(), signal.SIGKILL)

Path.write_text, os.truncate = write, truncate
run(Path(sys.argv[1]), Path(sys.argv[2]), 1)
"""


def killed_after_update_6(place: Path, folder: Path) -> Path:
    """A stage of one device whose newest checkpoint is that of update 5, and its metrics.jsonl. Its first update took 1,000 seconds."""
    shutil.copytree(place / "from one to four", folder)
    file = folder / "metrics.jsonl"
    first, *rows = map(json.loads, file.read_text().splitlines())
    rows = [first | {"perf/seconds": 1000.0}, *rows, rows[-1] | {"step": rows[-1]["step"] + 1}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_killed_while_it_cuts_off_its_metrics_is_uninterrupted(place, tmp_path):
    """What is measured again goes; nothing else does, at whatever moment the stage that resumes is killed."""
    folder = killed_after_update_6(place, tmp_path / "killed").parent
    words = [sys.executable, "-c", CUT, folder, place / "store"]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert run(folder, place / "store", 1)[0] == ""
    assert_equal(folder, place / "one")
    ours, theirs = (json.loads((out / "result.json").read_text()) for out in (folder, place / "one"))
    for key in ("updates", "tokens", "data", "train_loss", "validation"):
        assert ours[key] == theirs[key], key
    assert ours["updates"] == UPDATES
    assert 1000 < ours["seconds"] < 2000, "of both processes"


def test_metrics_with_a_gap_are_not_gone_on_from(place, tmp_path):
    """What was consumed so far is counted on from their last line, and result.json is made of them."""
    file = killed_after_update_6(place, tmp_path / "gap")
    lines = file.read_text().splitlines(keepends=True)
    for left in (lines[2:], lines[:3], []):
        file.write_text("".join(left))
        assert "metrics.jsonl: has " in run(file.parent, place / "store", 1)[0]
        assert file.read_text() == "".join(left) and not (file.parent / "result.json").exists()


def test_a_folder_holds_what_a_file_would(place):
    """The state of one device after five updates, as torch saved it, beside what two ranks left in pieces."""
    (file,) = (place / "from one to four" / "checkpoints").iterdir()
    one = torch.load(file, weights_only=False)
    two = assemble(newest_checkpoint(place / "sync copy" / "checkpoints"))
    assert two["global_step"] == one["global_step"] == STOP and two["loops"].keys() == one["loops"].keys()
    assert two["state_dict"].keys() == one["state_dict"].keys()
    (ours,), (theirs,) = two["optimizer_states"], one["optimizer_states"]
    assert [group["params"] for group in ours["param_groups"]] == [group["params"] for group in theirs["param_groups"]]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, state in theirs["state"].items():
        assert float(ours["state"][number]["step"]) == float(state["step"]) == STOP
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours["state"][number][name], state[name], atol=1e-4, rtol=1e-3)
    for name, tensor in read_checkpoint(newest_checkpoint(place / "sync copy" / "checkpoints")):
        assert tensor.equal(two["state_dict"][f"model.{name}"])


def test_what_is_written_beside_training_is_of_one_moment(place):
    """Of update 4: written while the updates after it were computed, and written while nothing moved."""
    ours, theirs = (assemble(place / f"{name} copy" / "checkpoints" / "step-00000004.ckpt") for name in ("background", "sync"))
    assert ours["state_dict"].keys() == theirs["state_dict"].keys() and ours["global_step"] == theirs["global_step"] == 4
    assert all(ours["state_dict"][name].equal(theirs["state_dict"][name]) for name in theirs["state_dict"])
    (mine,), (other,) = ours["optimizer_states"], theirs["optimizer_states"]
    assert all(mine["state"][number][name].equal(moments[name]) for number, moments in other["state"].items() for name in moments)


@pytest.mark.slow
def test_four_ranks_go_on_where_one_and_where_two_left(place):
    shutil.copytree(place / "sync copy", place / "from two to four")
    for old in ("step-00000002.ckpt", "step-00000004.ckpt"):
        shutil.rmtree(place / "from two to four" / "checkpoints" / old)
    run_ranks(4, HERE / "resume_ranks.py", place / "store", place, "from one to four", "from two to four")
    for name in ("from one to four", "from two to four"):
        assert_close(place / name, place / "straight")


def test_one_rank_whose_loss_is_not_finite(place):
    """All leave the update out, and still know of it after they were asked to end and went on."""
    assert json.loads((place / "nan skip" / "result.json").read_text())["skipped_updates"] == 1
    rows = [json.loads(line) for line in (place / "nan skip" / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/skipped"] for row in rows if "train/loss" in row] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert all(tensor.isfinite().all() for tensor in weights(place / "nan skip").values())


def test_one_write_at_a_time_and_its_error_is_heard():
    writer, gate, order = Writer(background=True), threading.Event(), []

    def slow():
        gate.wait(10)
        order.append("slow")
        raise UserError("the disk is gone")

    writer.run(slow)
    assert writer.poll() is False and writer.seconds is None
    gate.set()
    with pytest.raises(UserError, match="gone"):
        writer.run(lambda: order.append("never"))
    writer.run(lambda: order.append("next"))
    assert writer.poll(wait=True) is True and order == ["slow", "next"] and writer.seconds is not None


@pytest.mark.parametrize("offloaded", [True, False])
def test_what_lightning_has_put_into_the_hosts_memory_is_not_copied_again(offloaded, tmp_path):
    """As it does with what is on GPUs; of what was in the host's memory it has made no copy, and training goes on to change it."""
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    given = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    if offloaded:
        given = copy.deepcopy(given)

    class Held(Writer):
        def run(self, write):
            self.tensors = write.args[0]

    points = ShardedPoints()
    points.writer, points.model, points.optimizers, points._files = Held(True), model, [optimizer], object()
    points.broadcast = lambda path: path
    places = {x.data_ptr() for x in tree_leaves(given) if isinstance(x, torch.Tensor)}
    with Peak() as peak:
        points.save_checkpoint(given | {"loops": {}}, tmp_path / "step-00000001.ckpt")
    written = {x.data_ptr() for x in tree_leaves(points.writer.tensors) if isinstance(x, torch.Tensor)}
    assert len(written) == len(places) == 8  # two parameters, of each two moments and the step
    if offloaded:
        assert written == places and peak.most == 0
    else:
        assert not written & places


def test_what_is_written_beside_training_does_not_change(tmp_path):
    """The weights move while they are written."""
    writer, gate = Writer(background=True), threading.Event()
    weight = torch.zeros(4)
    writer.run(gate.wait)
    threading.Timer(0.2, gate.set).start()
    OneFile(writer).save_checkpoint({"state_dict": {"weight": weight}}, tmp_path / "step-00000001.ckpt")
    weight += 1
    writer.poll(wait=True)
    assert torch.load(tmp_path / "step-00000001.ckpt")["state_dict"]["weight"].equal(torch.zeros(4))
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000001.ckpt"]
