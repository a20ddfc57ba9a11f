"""The CSV against an independent reading of the same numbers, and what counts as a run."""

from __future__ import annotations

import csv
import json
import statistics

import pytest

from lit_long.config import UserError
from lit_long.report import write_report
from lit_long.report.archive import evaluated
from lit_long.report.results import StageResult, read_sweep


def rows_of(folder):
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def one(rows, **where):
    found = [row for row in rows if all(row[key] == str(value) for key, value in where.items())]
    assert len(found) == 1, (where, found)
    return found[0]


def test_mean_and_sample_deviation_over_seeds(tmp_path, make):
    code = {"rope": [21.3, 20.9, 22.2], "abf": [19.1, 19.4, 18.2]}
    measured = {(v, seed): make.perplexities(value) for v, values in code.items() for seed, value in enumerate(values)}
    folder = make.sweep(tmp_path, measured)
    report = write_report(folder)
    rows = rows_of(folder)
    assert report.table_csv == folder / "table.csv"
    assert list(rows[0]) == ["variant", "metric", "domain", "length", "mean", "sd", "seeds", "paper"]
    for variant, values in code.items():
        row = one(rows, variant=variant, metric="perplexity", domain="code", length=2048)
        assert float(row["mean"]) == pytest.approx(sum(values) / 3, rel=1e-12)
        assert float(row["sd"]) == pytest.approx(statistics.stdev(values), rel=1e-12)
        assert (row["seeds"], row["paper"]) == ("3", "")
    assert [row["variant"] for row in rows if row["seeds"] == "3"] == ["rope"] * 4 + ["abf"] * 4  # the grid's order


def test_one_seed_has_no_deviation(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): make.perplexities(19.1)})
    write_report(folder)
    row = one(rows_of(folder), variant="abf", domain="code", length=256)
    assert (float(row["mean"]), row["sd"], row["seeds"]) == (20.1, "", "1")


def test_paper_rows_stand_alone(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): make.perplexities(19.1)})
    write_report(folder)
    rows = rows_of(folder)
    paper = [row for row in rows if row["paper"]]
    assert len(paper) == 12
    assert all((r["mean"], r["sd"], r["seeds"], r["length"], r["metric"]) == ("", "", "0", "32768", "perplexity") for r in paper)
    found = {(row["variant"], row["domain"]): float(row["paper"]) for row in paper}
    assert found == {(v, domain): value for v, values in make.paper.items() for domain, value in values.items()}
    assert not any(row["paper"] for row in rows if row["mean"])


def test_a_shared_reference_counts_once_per_seed_not_per_trial(tmp_path, make):
    measured = {(v, seed): make.perplexities(20.0) for v in ("rope", "pi", "abf") for seed in (0, 1)}
    folder = make.sweep(tmp_path, measured, base={0: make.perplexities(90.0), 1: make.perplexities(94.0)})
    write_report(folder)
    row = one(rows_of(folder), variant="base", domain="code", length=2048)
    assert (float(row["mean"]), row["seeds"]) == (92.0, "2")
    assert float(row["sd"]) == pytest.approx(statistics.stdev([90.0, 94.0]))


@pytest.mark.parametrize("several", [False, True])
def test_references_of_different_models_are_not_averaged(tmp_path, make, several):
    """A grid over models: each was extended from a base of its own."""
    folder = make.sweep(
        tmp_path,
        {(v, seed): make.perplexities(20.0 + seed) for v in ("tiny", "mini") for seed in (0, 1)},
        base={0: make.perplexities(90.0), 1: make.perplexities(94.0)},
    )
    record = json.loads((folder / "sweep.json").read_text())
    for trial in record["trials"]:
        data = {"kind": "data", "digest": "d", "tokenizer": trial["variant"] if several else "one"}
        trial["stages"]["corpus"] = make.stage(tmp_path / "runs", f"corpus-{trial['variant']}", data)
        if trial["variant"] == "mini":
            other = make.evaluate(make.perplexities(50.0 + trial["seed"]))
            trial["stages"]["evaluate_base"] = make.stage(tmp_path / "runs", f"evaluate_base-mini-s{trial['seed']}", other)
    (folder / "sweep.json").write_text(json.dumps(record))
    report = write_report(folder)
    found = {row: one(rows_of(folder), variant=row, domain="code", length=2048) for row in ("base of tiny", "base of mini")}
    assert {row: (float(each["mean"]), each["seeds"]) for row, each in found.items()} == {
        "base of tiny": (92.0, "2"),
        "base of mini": (50.5, "2"),
    }
    warning = "Not comparable: 2 tokenizers (tiny; mini)."
    assert (warning in report.markdown) == (warning in str(report.terminal.renderables[-1])) == several
    assert "| base of mini (reference) |" in report.markdown and "| base (reference) |" not in report.markdown


def test_updates_that_were_left_out_are_told(tmp_path, make):
    """At the top of the page, and last in the terminal: a mean may stand on a model that half of its training left as it was."""
    folder = make.sweep(tmp_path, {("rope", seed): make.perplexities(20.0 + seed) for seed in (0, 1)})
    assert "left out, since" not in write_report(folder).markdown
    make.stage(tmp_path / "runs", "extend-rope-s1", make.train(2048, 200_000, updates=64, skipped_updates=63))
    report = write_report(folder)
    warning = "Updates were left out, since their loss or gradient was bad (trainer.on_bad_step=skip): extend s1 63 of 64."
    assert f"**{warning}**" in report.markdown.partition("## What was run")[0] and warning in str(report.terminal.renderables[-1])


def test_stages_that_started_from_different_runs_of_another_are_told(tmp_path, make):
    """As where the base of archived variants is trained again: their difference from new ones is more than the variants'."""
    folder = make.sweep(tmp_path, {(v, seed): make.perplexities(20.0 + seed) for v in ("rope", "pi", "abf") for seed in (0, 1)})
    record = json.loads((folder / "sweep.json").read_text())
    record["parents"] = {"extend": "base", "evaluate": "extend"}
    for trial in record["trials"]:
        trial["stages"]["base"] = make.stage(tmp_path / "runs", f"base-s{trial['seed']}", make.train(512, 100_000))
    (folder / "sweep.json").write_text(json.dumps(record))

    def start(run_of_pi):
        for trial in record["trials"]:
            run = run_of_pi if trial["variant"] == "pi" and trial["seed"] == 1 else f"run{trial['seed']}"
            name = f"extend-{trial['variant']}-s{trial['seed']}"
            make.stage(tmp_path / "runs", name, make.train(2048, 200_000, parent_run=run))
        return write_report(folder)

    assert "Not all from one run" not in start("run1").markdown
    report = start("another")
    warning = "Not all from one run: base s1 was run more than once, and extend rope s1, extend abf s1 / extend pi s1 started from different runs of it."
    assert warning in report.markdown.partition("## What was run")[0] and warning in str(report.terminal.renderables[-1])


def test_what_a_stage_starts_from(tmp_path, make):
    """A branch from the very beginning of its parent's run starts from what that started from; an evaluation of it measures it."""
    folder = make.sweep(tmp_path, {("rope", 0): make.perplexities(20.0)})
    sweep = read_sweep(folder)
    (trial,) = sweep.trials
    base, extend = (StageResult(name, tmp_path / name, None) for name in ("base", "extend"))
    again = StageResult("again", tmp_path / "again", None, settings={"kind": "train", "parent": "extend", "branch": 0})
    trial.stages.update(base=base, extend=extend, again=again)
    extend.settings.update(kind="train", parent="base")
    measured = StageResult(
        "measured", tmp_path / "measured", None, settings={"kind": "evaluate", "parent": "extend", "branch": 0}
    )
    assert [sweep.parent(trial, stage) for stage in (base, extend, again, measured)] == [None, base, base, extend]


def test_one_tokenizer_is_no_warning_while_a_variant_has_not_begun(tmp_path, make):
    folder = make.sweep(tmp_path, {("rope", 0): make.perplexities(20.0), ("abf", 0): None})
    record = json.loads((folder / "sweep.json").read_text())
    for trial, result in zip(record["trials"], ({"kind": "data", "digest": "d", "tokenizer": "one"}, None), strict=True):
        trial["stages"]["corpus"] = make.stage(tmp_path / "runs", f"corpus-{trial['variant']}", result)
    (folder / "sweep.json").write_text(json.dumps(record))
    assert "Not comparable" not in write_report(folder).markdown


def test_reference_keeps_its_full_name_beside_a_variant_called_base(tmp_path, make):
    folder = make.sweep(tmp_path, {("base", 0): make.perplexities(20.0)}, base={0: make.perplexities(90.0)})
    write_report(folder)
    rows = rows_of(folder)
    assert float(one(rows, variant="base", domain="code", length=2048)["mean"]) == 20.0
    assert float(one(rows, variant="evaluate_base", domain="code", length=2048)["mean"]) == 90.0


def test_unfinished_seed_is_left_out_of_the_mean_and_named(tmp_path, make):
    measured = {("abf", 0): make.perplexities(19.0), ("abf", 1): None, ("abf", 2): make.perplexities(21.0)}
    folder = make.sweep(tmp_path, measured)
    report = write_report(folder)
    row = one(rows_of(folder), variant="abf", domain="code", length=2048)
    assert (float(row["mean"]), row["seeds"]) == (20.0, "2")
    assert [(stage.name, stage.users) for stage in report.missing] == [("evaluate", [("abf", 1)])]


def test_a_result_without_its_done_marker_does_not_count(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): make.perplexities(19.0)})
    (tmp_path / "runs/stages/evaluate-abf-s0/DONE").unlink()
    write_report(folder)
    assert not [row for row in rows_of(folder) if row["mean"]]


@pytest.mark.parametrize("value", [None, float("inf"), float("nan")])
def test_a_diverged_seed_shows_in_the_mean(tmp_path, make, value):
    diverged = [("perplexity", "code", 2048, value)]
    fine = [("perplexity", "code", 2048, 20.0)]
    folder = make.sweep(tmp_path, {("rope", 0): diverged, ("rope", 1): fine, ("abf", 0): fine, ("abf", 1): fine})
    report = write_report(folder)
    assert one(rows_of(folder), variant="rope", domain="code", length=2048)["mean"] in ("inf", "nan")
    assert "**20" not in report.markdown  # nothing is best beside a number that is none


def test_duplicate_measurement_is_an_error(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): [("perplexity", "code", 2048, 20.0)] * 2})
    with pytest.raises(UserError, match=r"evaluate-abf-s0/result.json: perplexity of code at length 2048 is there twice"):
        write_report(folder)


def in_parts(make, root, second, measured=None):
    """A sweep whose variants abf and pi are measured by two stages; ``second``: by the other one, of each variant."""
    measured = measured or {("abf", 0): make.perplexities(20.0), ("pi", 0): make.perplexities(21.0)}
    about = {"position": {"scheme": "rope", "base": 1e4}, "model": {"head_dim": 32}}
    settings = dict.fromkeys(("abf", "pi"), about)
    folder = make.sweep(root, measured, base={0: make.perplexities(90.0)}, report={"rows_also": ["retrieve"]}, settings=settings)
    record = json.loads((folder / "sweep.json").read_text())
    for trial in record["trials"]:
        found = second[trial["variant"]]
        result = None if found is None else make.evaluate(found)
        trial["stages"]["retrieve"] = make.stage(root / "runs", f"retrieve-{trial['variant']}", result)
    (folder / "sweep.json").write_text(json.dumps(record))
    return folder


def test_a_row_measured_in_parts(tmp_path, make):
    folder = in_parts(make, tmp_path, {"abf": [("passkey_accuracy", "code", 2048, 0.75)], "pi": None})
    report = write_report(folder)
    rows = rows_of(folder)
    assert float(one(rows, variant="abf", metric="passkey_accuracy", length=2048)["mean"]) == 0.75
    assert float(one(rows, variant="abf", metric="perplexity", domain="code", length=2048)["mean"]) == 20.0
    assert float(one(rows, variant="pi", metric="perplexity", domain="code", length=2048)["mean"]) == 21.0
    assert [(stage.name, stage.users) for stage in report.missing] == [("retrieve", [("pi", 0)])]
    sweep = read_sweep(folder)
    kept = [evaluated(stage, sweep) for stage in sweep.stages if stage.measurements is not None]
    assert [(part["stage"], part["rows"]) for part in kept] == [
        *(("evaluate", ["abf"]), ("evaluate_base", ["base"])),
        *(("retrieve", ["abf"]), ("evaluate", ["pi"])),
    ]


def test_the_later_part_alone_counts_too(tmp_path, make):
    later = [("passkey_accuracy", "code", 2048, 0.75)]
    folder = in_parts(make, tmp_path, {"abf": later, "pi": later}, {("abf", 0): None, ("pi", 0): make.perplexities(21.0)})
    write_report(folder)
    rows = rows_of(folder)
    assert float(one(rows, variant="abf", metric="passkey_accuracy", length=2048)["mean"]) == 0.75


def test_what_two_parts_measured_is_an_error(tmp_path, make):
    folder = in_parts(make, tmp_path, {"abf": [("perplexity", "code", 2048, 19.0)], "pi": None})
    with pytest.raises(UserError, match=r"perplexity of code at length 2048 is there twice.*rows_also"):
        write_report(folder)


def test_a_part_that_no_trial_has_is_named(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): make.perplexities(20.0)}, report={"rows_also": ["retrieves"]})
    with pytest.raises(UserError, match=r"report\.rows_also is `retrieves`, but no trial has a stage of that name"):
        write_report(folder)


def test_incomplete_measurement_is_an_error(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): make.perplexities(20.0)})
    path = tmp_path / "runs/stages/evaluate-abf-s0/result.json"
    path.write_text(json.dumps({"kind": "evaluate", "measurements": [{"metric": "perplexity", "value": 1}]}))
    with pytest.raises(UserError, match=r"measurements\[0\] lacks domain, length.*DONE"):
        write_report(folder)


def test_rows_that_are_no_evaluate_stage_are_an_error(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): make.perplexities(20.0)}, report={"rows": "extend"})
    with pytest.raises(UserError, match=r"extend-abf-s0/result.json: a stage of kind `train` has no measurements"):
        write_report(folder)
