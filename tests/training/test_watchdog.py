"""Who is to blame when nothing moves, in words."""

from __future__ import annotations

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from lit_long.launch.ranks import explain_failure
from lit_long.training.watchdog import find_culprits


def report(rank, position, waits=True, where="module.py:1 in training_step"):
    return {"rank": rank, "host": "node1", "position": position, "waits": waits, "where": where}


def test_the_rank_that_says_nothing():
    found = find_culprits([report(0, [7, 1]), report(3, [7, 1])], 4)
    assert found.startswith("ranks 1, 2 of 4 did not answer")


def test_the_rank_that_is_behind():
    """Ranks 0 and 2 are in update 8 and wait; rank 1 still fetches its batch."""
    found = find_culprits([report(0, [7, 2]), report(1, [7, 0], waits=False, where="store.py:9 in read"), report(2, [7, 2])], 3)
    assert found.startswith("rank 1 of 3 did not arrive: store.py:9 in read on node1, in update 8")


def test_the_rank_that_waits_for_nobody():
    found = find_culprits([report(0, [7, 2]), report(1, [7, 2], waits=False, where="mine.py:3 in rotation")], 2)
    assert found.startswith("rank 1 of 2 did not arrive: mine.py:3 in rotation")


def test_nobody_can_be_told():
    assert "all 2 ranks stand at the same place, in update 8" in find_culprits([report(0, [7, 2]), report(1, [7, 2])], 2)


def failure(code, after=0):
    found = ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file="none")
    found.timestamp += after
    return found


def test_the_rank_that_was_killed_and_not_those_that_torchrun_ended(tmp_path):
    """Rank 2 is killed, 0 loses its connection at once, 1 and 3 are ended by torchrun, the latter by force half a minute later."""
    (tmp_path / "error.txt").write_text("rank 0: Connection closed by peer\n")
    failures = {0: failure(1), 1: failure(-15), 2: failure(-9), 3: failure(-9, after=30)}
    assert explain_failure(tmp_path, failures) == 1
    reason = (tmp_path / "error.txt").read_text()
    assert reason.startswith("rank 2 by SIGKILL (was the memory used up?): ended on ") and "rank 3" not in reason


def test_what_ranks_say_themselves_stays(tmp_path):
    (tmp_path / "error.txt").write_text("learning rate: too high\n")
    assert explain_failure(tmp_path, {0: failure(2), 1: failure(2)}) == 2
    assert explain_failure(tmp_path, {0: failure(1), 1: failure(-15)}) == 1
    assert explain_failure(tmp_path, {0: failure(130), 1: failure(130)}) == 130
    assert (tmp_path / "error.txt").read_text() == "learning rate: too high\n"
    (tmp_path / "error.txt").unlink()
    assert explain_failure(tmp_path, {1: failure(3)}) == 3
    assert (tmp_path / "error.txt").read_text().startswith("rank 1 on ")
