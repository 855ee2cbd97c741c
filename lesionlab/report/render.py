"""From sections to one HTML page with its pictures inside, and to Markdown with links to them."""

import base64
import io
import os
import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from lesionlab.files import whole_file
from lesionlab.report.content import Picture, Section
from lesionlab.report.tables import Table

TITLE = "Lesionlab: report"
LARGE = 60_000  # bytes; larger pictures are packed more tightly, which photographs bear
QUALITY = 88  # of WebP
INTERVAL = re.compile(r" (\[[^\]]+\])$")


def write_html(path: Path, sections: list[Section]) -> None:
    """One file that needs no other: no script, no font, pictures as data."""
    _write(path, "report.html.j2", sections)


def write_markdown(path: Path, sections: list[Section]) -> None:
    """The same in Markdown; pictures are linked where they lie."""
    _write(path, "report.md.j2", sections)


def _write(path: Path, template: str, sections: list[Section]) -> None:
    environment = Environment(
        loader=PackageLoader("lesionlab.report"), autoescape=template.endswith(".html.j2"), trim_blocks=True,
        lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "data_uri": data_uri,
        "interval": interval,
        "cell": lambda text: text.replace("|", "\\|").replace("\n", " "),
        "link": lambda target: Path(os.path.relpath(target, path.parent)).as_posix().replace(" ", "%20"),
    }
    environment.tests |= {
        "table": lambda part: isinstance(part, Table), "picture": lambda part: isinstance(part, Picture)
    }  # fmt: skip
    with whole_file(path) as temporary:
        temporary.write_text(environment.get_template(template).render(title=TITLE, sections=sections))


def data_uri(path: Path) -> str:
    """A picture as text that a page can hold."""
    content, kind = path.read_bytes(), "png"
    if len(content) > LARGE:
        packed = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").save(packed, "webp", quality=QUALITY, method=4)
        if len(packed.getvalue()) < len(content):
            content, kind = packed.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def interval(text: str) -> Markup:
    """A table's cell with its interval, where it has one, in smaller letters."""
    found = INTERVAL.search(text)
    if not found:
        return escape(text)
    return escape(text[: found.start()]) + Markup(' <span class="interval">{}</span>').format(found[1])
