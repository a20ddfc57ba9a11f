"""The PNGs: which there are, their size, and that drawing leaves nothing behind. How they look, a person must judge."""

from __future__ import annotations

import struct

import pytest

from lit_long.report import write_report


def size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


@pytest.mark.parametrize("seeds", [1, 3])
def test_both_figures_are_drawn_and_embedded(tmp_path, make, seeds):
    measured = {(v, s): make.everything(20.0 + s) for v in ("rope", "abf") for s in range(seeds)}
    report = write_report(make.sweep(tmp_path, measured, base={s: make.everything(90.0) for s in range(seeds)}))
    assert [path.name for path in report.figures] == [
        f"{n}.{kind}" for n in ("retrieval", "loss_by_position") for kind in ("png", "svg")
    ]
    for path in report.figures[::2]:
        width, height = size(path)
        assert width == 1080 and 400 < height < 900
        assert f"](figures/{path.name})" in report.markdown
    assert all("<svg" in path.read_text() for path in report.figures[1::2])


def test_what_a_model_scores_that_cannot_look_back_is_a_line(tmp_path, make):
    plain = write_report(make.sweep(tmp_path / "plain", {("abf", 0): make.everything()}))
    measured = {("abf", 0): [*make.everything(), ("retrieval_control", "docs", 256, 0.31)]}
    report = write_report(make.sweep(tmp_path / "control", measured))
    without, drawn = (
        next(path for path in found.figures if path.name == "retrieval.svg").read_text() for found in (plain, report)
    )
    assert drawn.count("stroke-dasharray") == without.count("stroke-dasharray") + 1
    assert "token accuracy after another text, %" in report.markdown and "31.0" in report.markdown
    assert "what one that cannot look back does" in report.markdown and "after another text" not in without


def test_unmeasured_figures_are_left_out_and_stale_ones_removed(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): make.perplexities(20.0)})
    (folder / "figures").mkdir()
    (folder / "figures" / "retrieval.png").write_bytes(b"of an earlier report")
    report = write_report(folder)
    assert report.figures == [] and list((folder / "figures").iterdir()) == []


def test_no_temporary_files_remain(tmp_path, make):
    folder = make.sweep(tmp_path, {("abf", 0): make.everything()})
    write_report(folder)
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    figures = [f"figures/{name}.{kind}" for name in ("loss_by_position", "retrieval") for kind in ("png", "svg")]
    assert left == [*figures, "report.html", "report.md", "sweep.json", "sweep.yaml", "table.csv", "tables.tex"]


def test_a_failed_drawing_keeps_the_earlier_figure(tmp_path, make, monkeypatch):
    folder = make.sweep(tmp_path, {("abf", 0): make.everything()})
    before = write_report(folder).figures[0].read_bytes()

    def fail(results):
        def draw(file, kind):
            file.write(b"half a figure")
            raise OSError("disk full")

        return {"retrieval": draw}

    monkeypatch.setattr("lit_long.report.figures.drawings", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(folder)
    assert (folder / "figures" / "retrieval.png").read_bytes() == before
    assert not list((folder / "figures").glob(".*"))


def test_many_variants_domains_and_diverged_values(tmp_path, make):
    lengths = [256, 1024, 2048, 4096, 8192, 10240, 12288, 14336, 16384, 20480, 24576, 28672, 30720]
    measured = {}
    for index in range(16):
        fsr = [("retrieval_accuracy", f"domain{d}", n, 0.5) for d in range(4) for n in lengths]
        loss = [("loss_by_position", "code", n, None if index == 3 else 3.0) for n in (512, 1024)]
        measured[f"variant-{index}", 0] = fsr + loss
    report = write_report(make.sweep(tmp_path, measured))
    width, height = size(report.figures[0])
    assert width == 1080 and height > 900  # four panels take two rows


@pytest.mark.parametrize("metric", ["retrieval_accuracy", "loss_by_position"])
def test_a_single_length_can_be_drawn(tmp_path, make, metric):
    assert len(write_report(make.sweep(tmp_path, {("abf", 0): [(metric, "docs", 256, 0.5)]})).figures) == 2  # png and svg


def test_settings_of_matplotlib_are_left_alone(tmp_path, make):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(make.sweep(tmp_path, {("abf", 0): make.everything()}))
    assert dict(matplotlib.rcParams) == before
