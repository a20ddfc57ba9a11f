"""report.md: its tables, the rule for bold, the gaps it names, and that paper and measured numbers stay apart."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from lit_long.report import write_report
from lit_long.report.page import model_size
from lit_long.report.results import aggregate, read_sweep


def table(markdown: str, heading: str) -> list[list[str]]:
    """Cells of the first table after a heading, the rule line left out."""
    lines = markdown[markdown.index(heading) :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def seeds(make, **code):
    """Variant → perplexities by seed, as measurements."""
    return {(variant, seed): make.perplexities(v) for variant, values in code.items() for seed, v in enumerate(values)}


def test_table_5_with_one_seed(tmp_path, make):
    measured = seeds(make, rope=[21.3], pi=[20.5], abf=[19.8], xpos_abf=[19.9])
    folder = make.sweep(tmp_path, measured, base={0: make.perplexities(95.0, 99.0)})
    report = write_report(folder)
    assert (folder / "report.md").read_text() == report.markdown
    header, *rows = table(report.markdown, "## Validation perplexity")
    assert header == [
        *("variant", "code<br>@ 2,048", "docs<br>@ 2,048", "code<br>@ 256", "docs<br>@ 256"),
        *("", "paper:<br>Books", "paper:<br>CC", "paper:<br>Wikipedia"),
    ]
    assert rows[0] == ["RoPE", "21.30", "30.00", "22.30", "31.00", "", "6.548", "6.816", "3.802"]
    assert [row[0] for row in rows] == ["RoPE", "RoPE PI", "RoPE ABF", "xPOS ABF", "base (reference)"]
    assert rows[2][6:] == ["6.323", "6.780", "3.771"]  # the paper's own three places
    assert rows[4] == ["base (reference)", "95.00", "99.00", "96.00", "100.00", "", "—", "—", "—"]
    assert "**" not in report.markdown
    assert "One seed cannot rank close variants, so nothing is bold." in report.markdown
    assert "Xiong et al. 2023, Table 5" in report.markdown and "* A note." in report.markdown


def test_setup_is_told_in_plain_words(tmp_path, make):
    report = write_report(make.sweep(tmp_path, seeds(make, rope=[21, 22], abf=[19, 20])))
    expected = (
        "Which encoder extends best. A 2.4M-parameter model is trained: `base` on 400,000 tokens in contexts of 256, then "
        "`extend` on 200,000 tokens in contexts of 2,048. 2 variants, 2 seeds (0, 1). Perplexity is over 131,072 held-out "
        "tokens per domain, length and seed. Machine: AMD EPYC, 2 cores (bf16-mixed). Training took 8 min in all (6 stages)."
    )
    assert f"\n\n## What was run\n\n{expected}\n\n## " in report.markdown


@pytest.mark.parametrize(
    ("rope", "abf", "bold"),
    [
        ([21.0, 21.2, 21.4], [19.0, 19.2, 19.4], True),  # 2 apart, deviations 0.2 + 0.2
        ([19.3, 19.5, 19.7], [19.0, 19.2, 19.4], False),  # 0.3 apart
        ([21.0], [19.0, 19.2, 19.4], False),  # the other has one seed
        ([21.0], [19.0], False),
    ],
)
def test_bold_needs_two_seeds_and_a_clear_gap(tmp_path, make, rope, abf, bold):
    report = write_report(make.sweep(tmp_path, seeds(make, rope=rope, abf=abf)))
    _, *rows = table(report.markdown, "## Validation perplexity")
    assert rows[1][1].startswith("**19.20 ± 0.20**" if bold else "19.")
    assert ("**" in report.markdown) == bold
    assert "**" not in rows[0][1] and "**" not in rows[1][2]  # docs: a tie


def test_bold_must_clear_every_other_not_only_the_second(tmp_path, make):
    noisy = [10.0, 22.0, 34.0]  # worst on average, deviation 12: it might well be the best
    report = write_report(make.sweep(tmp_path, seeds(make, abf=[19.0, 19.1], pi=[20.0, 20.1], rope=noisy)))
    assert "**" not in report.markdown and "no variant is, in this table" in report.markdown


def test_the_reference_does_not_compete(tmp_path, make):
    base = {seed: make.perplexities(1.0) for seed in (0, 1)}
    report = write_report(make.sweep(tmp_path, seeds(make, rope=[21.0, 21.1], abf=[19.0, 19.1]), base=base))
    _, *rows = table(report.markdown, "## Validation perplexity")
    assert rows[1][1] == "**19.050 ± 0.071**"  # three places: the column's smallest number is below 10
    assert "**" not in "".join(rows[2])


def test_retrieval_tables_say_what_they_are(tmp_path, make):
    fsr = {"rope": [0.68, 0.46], "abf": [0.70, 0.76]}
    measured = {
        (variant, seed): [
            m
            for length, value in zip((256, 2048), values, strict=True)
            for m in (
                ("retrieval_accuracy", "docs", length, value + seed / 100),
                ("retrieval_nats", "docs", length, 1 - value),
            )
        ]
        for variant, values in fsr.items()
        for seed in (0, 2)
    }
    markdown = write_report(make.sweep(tmp_path, measured)).markdown
    accuracy = table(markdown, "**FIRST-SENTENCE-RETRIEVAL on docs: teacher-forced token accuracy, %")
    assert accuracy == [
        ["variant", "256", "2,048"],
        ["RoPE", "69.0 ± 1.4", "47.0 ± 1.4"],
        ["RoPE ABF", "71.0 ± 1.4", "**77.0 ± 1.4**"],
    ]
    assert table(markdown, "teacher-forced nats per token")[2] == ["RoPE ABF", "**0.300 ± 0.000**", "**0.240 ± 0.000**"]
    assert "ROUGE-L of generated text" in markdown and "PASSKEY" not in markdown


def test_generated_text_and_passkeys(tmp_path, make):
    def scores(value):
        more = [("retrieval_rouge_l", "docs", 256, value), ("passkey_accuracy", "docs", 4096, value / 2)]
        return [*make.everything(), *more]

    report = write_report(make.sweep(tmp_path, {("rope", s): scores(0.25 + s / 4) for s in (0, 1)}))
    assert table(report.markdown, "ROUGE-L, %")[1] == ["RoPE", "37.5 ± 17.7"]
    assert table(report.markdown, "**PASSKEY in docs")[:2] == [["variant", "4,096"], ["RoPE", "18.8 ± 8.8"]]
    assert "ROUGE-L of generated text" not in report.markdown and "five digits" in report.markdown
    assert [path.name for path in report.figures[::2]] == [
        "retrieval_rouge.png",
        "retrieval.png",
        "passkey.png",
        "loss_by_position.png",
    ]


def test_perplexity_at_every_length_where_there_is_room(tmp_path, make):
    lengths = (4096, 8192, 16_384, 32_768)
    few = {("rope", 0): [("perplexity", "docs", length, 20.0 + length) for length in lengths]}
    header = table(write_report(make.sweep(tmp_path / "few", few, report={"paper": {}})).markdown, "## Validation perplexity")[0]
    assert header == ["variant", *(f"docs<br>@ {length:,}" for length in reversed(lengths))]
    many = {("rope", 0): [("perplexity", d, length, 20.0) for d in ("code", "docs") for length in lengths]}
    header = table(write_report(make.sweep(tmp_path / "many", many, report={"paper": {}})).markdown, "## Validation perplexity")[
        0
    ]
    assert [head.split()[-1] for head in header] == ["variant", "32,768", "32,768", "4,096", "4,096"]


def test_absent_metrics_leave_no_trace(tmp_path, make):
    report = write_report(make.sweep(tmp_path, seeds(make, abf=[19.0]), report={"paper": {}, "notes": []}))
    for absent in ("RETRIEVAL", "retrieval", "## Figures", "## Notes", "## Missing", "paper", "—", "Incomplete"):
        assert absent not in report.markdown
    assert report.figures == [] and report.missing == []


def test_missing_stages_are_dashes_and_are_named(tmp_path, make):
    measured = seeds(make, rope=[21.0], abf=[19.0]) | {("pi", 0): None}
    folder = make.sweep(tmp_path, measured)
    (tmp_path / "runs/stages/evaluate-pi-s0").rmdir()
    (tmp_path / "runs/stages/base-s0/DONE").unlink()
    report = write_report(folder)
    _, *rows = table(report.markdown, "## Validation perplexity")
    assert rows[2] == ["RoPE PI", "—", "—", "—", "—", "", "6.341", "6.786", "3.775"]
    missing = report.markdown[report.markdown.index("## Missing") :]
    assert "* `evaluate` of RoPE PI seed 0: not started (`evaluate-pi-s0`)" in missing
    assert "* `base` of RoPE seed 0, RoPE ABF seed 0, RoPE PI seed 0: unfinished" in missing
    assert "python -m lit_long.sweep experiment=position_tiny" in missing
    assert "**Incomplete:** 2 of 8 stages" in report.markdown.split("## ")[0]


def test_nothing_finished_shows_no_empty_tables(tmp_path, make):
    """The paper's numbers alone would look like a result."""
    report = write_report(make.sweep(tmp_path, {("abf", 0): None}))
    assert "**Incomplete:** 1 of 4 stages" in report.markdown and "6.323" not in report.markdown
    assert on_screen(report) == "" and report.failures == ""


def on_screen(report):
    screen = io.StringIO()
    Console(file=screen, width=80).print(report.terminal)
    return screen.getvalue()


def test_failures_come_first_and_last(tmp_path, make):
    """First in the report, last in the terminal: one line each, whatever they contain, with where their logs are."""
    folder = make.sweep(tmp_path, seeds(make, rope=[21.0, 21.2]) | {("abf", 0): None, ("abf", 1): None})
    stages = tmp_path / "runs" / "stages"
    (stages / "evaluate-abf-s0" / "error.txt").write_text("ValueError: a `tick`,\n  [bold]two[/bold] lines of <b>*text*</b>\n")
    (stages / "base-s0" / "error.txt").write_text("left over; it has ended well since\n")
    report = write_report(folder)
    why = "ValueError: a `tick`, [bold]two[/bold] lines of <b>*text*</b>"
    first = f"# Positions, small\n\n**1 of 11 stages failed, and 1 more has no result:**\n\n* evaluate abf s0: `` {why} `` (`evaluate-abf-s0`)\n\n"
    assert report.markdown.startswith(first)
    log = stages / "evaluate-abf-s0" / "log.txt"
    assert report.failures == f"1 of 11 stages failed, and 1 more has no result:\n  evaluate abf s0: {why}  ({log})"
    page = (folder / "report.html").read_text()
    assert "lines of &lt;b&gt;*text*&lt;/b&gt;</code>" in page and page.index("tick") < page.index("<table>")
    assert "* `evaluate` of RoPE ABF seed 0: failed" in report.markdown


def test_provenance_names_key_digest_and_every_stage_folder(tmp_path, make):
    markdown = write_report(make.sweep(tmp_path, seeds(make, rope=[21, 22], abf=[19, 20]))).markdown
    assert "sweep `k1`" in markdown and "`sha256:abcd`" in markdown
    header, *rows = table(markdown, "## Provenance")
    assert header == ["variant", "seed", "corpus", "base", "extend", "evaluate"]
    assert rows[3] == ["RoPE ABF", "1", "`corpus-0`", "`base-s1`", "`extend-abf-s1`", "`evaluate-abf-s1`"]


def test_names_with_special_characters_survive(tmp_path, make):
    report = write_report(make.sweep(tmp_path, seeds(make, **{"a|b[bold]x": [19.0]})))
    assert "| a\\|b[bold]x | 19.00 |" in report.markdown
    screen = io.StringIO()
    Console(file=screen, width=80).print(report.terminal)
    assert "a|b[bold]x" in screen.getvalue()


def test_terminal_shows_the_same_numbers_within_80_columns(tmp_path, make):
    measured = seeds(make, rope=[21.3, 21.5], pi=[20.5, 20.6], abf=[19.8, 19.9], xpos_abf=[19.9, 20.1])
    folder = make.sweep(tmp_path, measured, base={0: make.perplexities(95.0), 1: make.perplexities(95.5)})
    screen = io.StringIO()
    Console(file=screen, width=80).print(write_report(folder).terminal)
    lines = screen.getvalue().splitlines()
    assert any("base (reference)" in line and "95.25±0.35" in line for line in lines)
    assert any("RoPE ABF" in line and "6.323" in line for line in lines)
    assert "…" not in screen.getvalue()


def test_same_results_give_the_same_bytes(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): make.everything()})
    written = []
    for _ in range(2):
        report = write_report(folder)
        written.append([path.read_bytes() for path in (report.report_md, report.table_csv, *report.figures)])
    assert written[0] == written[1] and len(written[0]) == 6


def test_the_size_of_a_model_that_was_only_measured(tmp_path, make):
    folder = make.sweep(tmp_path, {("rope", 0): make.everything()})
    stages = tmp_path / "runs" / "stages"
    for name in ("base-s0", "extend-rope-s0"):
        (stages / name / "DONE").unlink()
    file = stages / "evaluate-rope-s0" / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"parameters": 134_515_008}))
    assert model_size(aggregate(read_sweep(folder))) == "135M-parameter model"


def test_what_was_planned_and_consumed(tmp_path, make):
    folder = make.sweep(tmp_path, seeds(make, abf=[20.0], rope=[21.0]))
    counts = {"documents": 7, "cut": 2, "cropped": 1000}
    code = {"tokens": 3000.0, "epochs": 1.5, "share": 0.75, "utilisation": 0.9, "consumed": {"tokens": 2000, **counts}}
    other = {"tokens": 1000.0, "epochs": None, "share": 0.25, "utilisation": 1.0, "consumed": {"tokens": 2000, **counts}}
    for variant in ("abf", "rope"):
        file = folder.parent.parent / "stages" / f"extend-{variant}-s0" / "result.json"
        content = json.loads(file.read_text()) | {
            "data": {"code": code, "retrieval": other} if variant == "abf" else {"code": code}
        }
        file.write_text(json.dumps(content))
    header, *rows = table(write_report(folder).markdown, "## Data")
    assert header[2:6] == ["planned share", "consumed", "tokens", "epochs"]
    assert rows == [
        ["extend, RoPE ABF", "code", "75.0%", "50.0%", "2,000", "1.00", "7", "2", "1,000"],
        ["extend, RoPE ABF", "retrieval", "25.0%", "50.0%", "2,000", "—", "7", "2", "1,000"],
        ["extend, RoPE", "code", "75.0%", "100.0%", "2,000", "1.00", "7", "2", "1,000"],
    ]
