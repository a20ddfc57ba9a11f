"""Tables of a paper with ours beside them."""

from __future__ import annotations

import json

from lit_long.report import write_report
from tests.report.test_page import seeds, table

PUBLISHED = {
    "title": "Table 6: short tasks",
    "source": "Xiong et al. 2023",
    "rows": {"rope": {"Math": 3.62, "MMLU": 45.69}, "abf": {"Math": 3.52, "MMLU": 46.24}, "xpos": {"MMLU": 45.7}},
    "measured": {"MMLU": {"metric": "mmlu.acc", "domain": "all", "scale": 100.0}},
}


def test_paper_ours_difference(tmp_path, make):
    measured = seeds(make, rope=[21.3, 21.5], abf=[19.8, 19.9])
    for (variant, seed), rows in measured.items():
        if variant == "abf":
            rows += [("mmlu.acc", "all", 512, 0.9), ("mmlu.acc", "all", 2048, 0.25 + 0.02 * seed)]
    folder = make.sweep(tmp_path, measured, report={"published": [PUBLISHED]})
    report = write_report(folder)
    header, *rows = table(report.markdown, "## Table 6: short tasks")
    assert header == ["variant", "Math<br>paper", "MMLU<br>paper", "MMLU<br>ours", "MMLU<br>ours − paper"]
    assert rows == [
        ["RoPE", "3.62", "45.69", "—", "—"],
        ["RoPE ABF", "3.52", "46.24", "26.00 ± 1.41", "-20.24"],  # of the longest length
        ["xPOS", "—", "45.7", "—", "—"],
    ]
    assert "Published numbers (Xiong et al. 2023)" in report.markdown
    assert "abf,Table 6: short tasks,MMLU,,,,0,46.24" in (folder / "table.csv").read_text()


def test_a_column_of_which_nothing_was_measured_shows_the_paper_alone(tmp_path, make):
    report = write_report(make.sweep(tmp_path, seeds(make, rope=[21.3], abf=[19.8]), report={"published": [PUBLISHED]}))
    header, *rows = table(report.markdown, "## Table 6: short tasks")
    assert header == ["variant", "Math<br>paper", "MMLU<br>paper"] and rows[0] == ["RoPE", "3.62", "45.69"]
    assert "* `report.published[0].measured.MMLU`: metric=mmlu.acc, domain=all" in report.markdown.partition("## Not measured")[2]


def test_columns_of_other_names_stand_after_the_papers_and_no_column_is_empty(tmp_path, make):
    """Theirs are of needles, ours of first sentences: no pair of them has a difference."""
    published = {
        "title": "Retrieval",
        "rows": {"rope": {"2×": 0, "4×": 1.5}, "abf": {"2×": 97}},
        "measured": {
            f"FSR {column}": {"metric": "retrieval_accuracy", "domain": "docs", "length": length, "scale": 100}
            for column, length in {"4×": 512, "8×": 2048, "2×": 256}.items()
        },
    }
    rows = [("retrieval_accuracy", "docs", 256, 0.5), ("retrieval_accuracy", "docs", 512, 0.25)]
    folder = make.sweep(tmp_path, {("rope", 0): rows, ("abf", 0): rows}, report={"published": [published]})
    header, *cells = table(write_report(folder).markdown, "## Retrieval\n\nPublished")
    assert header == ["variant", "2×<br>paper", "4×<br>paper", "FSR 4×<br>ours", "FSR 2×<br>ours"]
    assert cells == [["RoPE", "0", "1.5", "25.00", "50.00"], ["RoPE ABF", "97", "—", "25.00", "50.00"]]


def test_no_difference_where_no_row_has_both(tmp_path, make):
    published = PUBLISHED | {"rows": {"theirs": {"MMLU": 45.7}}}
    folder = make.sweep(tmp_path, {("rope", 0): [("mmlu.acc", "all", 512, 0.25)]}, report={"published": [published]})
    header, *cells = table(write_report(folder).markdown, "## Table 6")
    assert header == ["variant", "MMLU<br>paper", "MMLU<br>ours"]
    assert cells == [["RoPE", "—", "25.00"], ["theirs", "45.7", "—"]]


def test_a_table_without_numbers_is_left_out(tmp_path, make):
    published = PUBLISHED | {"rows": {}}
    folder = make.sweep(tmp_path, seeds(make, rope=[21.3]), report={"published": [published, PUBLISHED | {"title": "Table 7"}]})
    report = write_report(folder)
    assert "## Table 6" not in report.markdown and "## Table 7" in report.markdown
    assert "Table 6" not in (folder / "tables.tex").read_text()
    assert "* `report.published[0].measured.MMLU`" in report.markdown.partition("## Not measured")[2]


TRIED = {"64": 9.0, "1024": 8.0, "65536": 8.5, "1e+12": 9.5}


def fitted(tmp_path, make, **values):
    """A sweep whose variants' bases were fitted under each seed, among TRIED."""
    measured = {
        (variant, seed): [("query_scale.fitted", "all", 2048, value)]
        for variant, of in values.items()
        for seed, value in enumerate(of)
    }
    wanted = {"base": {"metric": "query_scale.fitted", "domain": "all"}}
    published = {"title": "Query scales", "rows": {"abf": {"base": 512}}, "measured": wanted}
    folder = make.sweep(tmp_path, measured, report={"published": [published]})
    for file in folder.parent.parent.glob("stages/evaluate-*/result.json"):
        result = json.loads(file.read_text())
        result["measurements"][0]["perplexity"] = TRIED
        file.write_text(json.dumps(result))
    return write_report(folder).markdown


def test_of_a_fitted_constant_each_seed_is_told(tmp_path, make):
    """The mean of bases of a logarithm says nothing."""
    page = fitted(tmp_path, make, rope=[1024.0, 65536.0, 1024.0], abf=[64.0, 1024.0, 1e12])
    header, *cells = table(page, "## Query scales")
    marked = "base<br>ours, of each seed<br>(end): at the end of<br>the values tried"
    assert header == ["variant", "base<br>paper", marked]
    assert cells == [["RoPE", "—", "1024 · 65536 · 1024"], ["RoPE ABF", "512", "64 (end) · 1024 · 1e+12 (end)"]]
    assert "differences to" not in page


def test_the_end_of_the_values_tried_is_explained_only_where_it_is(tmp_path, make):
    header, *cells = table(fitted(tmp_path, make, rope=[1024.0]), "## Query scales")
    assert header[-1] == "base<br>ours" and cells[0] == ["RoPE", "—", "1024"]
