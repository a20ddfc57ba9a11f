"""report.html: the page of report.md in one file that can be sent around; figures are inside, nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e4e4e4; vertical-align: bottom; }
th { border-bottom: 2px solid #999; text-align: left; } td { font-variant-numeric: tabular-nums; white-space: nowrap; }
summary { font-size: 1.15rem; font-weight: 600; margin-top: 1rem; padding: .3rem 0; border-bottom: 1px solid #ddd; cursor: pointer; }
img { max-width: 100%; } code { background: #f4f4f4; padding: 0 .2rem; } em { color: #555; }
""".strip()


def page_html(title: str, top: str, below: str, figures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        top, below: the two parts of report.md; each section of the second is folded.
        figures: the PNG behind each of its links.
    """
    from markdown_it import MarkdownIt

    # Of HTML in the text only a table head's line breaks are meant.
    first, rest = (
        MarkdownIt("commonmark", {"html": False}).enable("table").render(part).replace("&lt;br&gt;", "<br>")
        for part in (top, below)
    )
    folded = r"<details>\n<summary>\1</summary>\n\2</details>\n"
    body = first + re.sub(r"<h2>(.*?)</h2>\n(.*?)(?=<h2>|\Z)", folded, rest, flags=re.S)
    body = re.sub(r'src="([^"]*)"', lambda found: f'src="{inside(found[1], figures)}"', body)
    head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}</title>'
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n{body}</body>\n</html>\n'


def inside(link: str, figures: Mapping[str, bytes]) -> str:
    """A link to a figure as the figure itself."""
    return f"data:image/png;base64,{base64.b64encode(figures[link]).decode()}" if link in figures else link
