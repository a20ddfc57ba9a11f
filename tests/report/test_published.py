"""Tables of a paper with ours beside them."""

from __future__ import annotations

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
