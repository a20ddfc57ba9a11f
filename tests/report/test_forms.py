"""The same tables as one HTML page and as LaTeX."""

from __future__ import annotations

import base64
import html.parser
import re
import shutil
import subprocess

import pytest

from lit_long.report import write_report
from lit_long.report.tables import Table


class Cells(html.parser.HTMLParser):
    """The cells of all tables, row by row; and every address that the page would load."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.links, self.cell = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = self.rows[-1]
        elif tag == "br" and self.cell:
            self.cell[-1] += " "

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if self.cell:
            self.cell[-1] += data


def test_the_page_holds_tables_and_figures_and_loads_nothing(tmp_path, make):
    folder = make.sweep(tmp_path, {("rope<b>", s): make.everything(20.0 + s) for s in (0, 1)})
    report = write_report(folder)
    page = (folder / "report.html").read_text()
    found = Cells(page)
    assert [found.rows[1][0], found.rows[1][1]] == ["rope<b>", "20.50 ± 0.71"]
    assert found.rows[0][1] == "code @ 2,048"
    assert len(found.links) == 2 and all(link.startswith("data:image/png;base64,") for link in found.links)
    assert base64.b64decode(found.links[0].partition(",")[2]) == report.figures[0].read_bytes()
    again = write_report(folder)  # the same results, the same bytes
    assert (folder / "report.html").read_text() == page and again.markdown == report.markdown


def test_latex(tmp_path):
    table = Table("T", ["variant", "MMLU_x\n% paper"], [["a & b", "−1.50 ± 0.20"], ["α~β", "2^−β"]], {(1, 1)})
    assert table.latex().splitlines() == [
        "% T",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"variant & \shortstack{MMLU\_x\\\% paper} \\",
        r"\midrule",
        r"a \& b & $-$1.50 $\pm$ 0.20 \\",
        r"$\alpha$\textasciitilde{}$\beta$ & \textbf{2\textasciicircum{}$-$$\beta$} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_latex_can_be_set(tmp_path, make):
    folder = make.sweep(tmp_path, {("rope_x", s): make.everything(20.0 + s) for s in (0, 1)})
    write_report(folder)
    tables = (folder / "tables.tex").read_text()
    assert len(re.findall(r"\\begin\{tabular\}", tables)) >= 2
    (tmp_path / "page.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + tables + "\\end{document}\n"
    )
    finished = subprocess.run(["pdflatex", "-halt-on-error", "page.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout[-1500:]
