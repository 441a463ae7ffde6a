"""A page that stands alone in the output of another command, with the photographs that it shows."""

from collections.abc import Sequence
from typing import Any

from beam_pipeline.manifest import IndexManifest
from beam_pipeline.matches import StoredImage
from beam_pipeline.report.cards import TEMPLATES, template_text
from beam_pipeline.report.pictures import Photograph, href, thumbnails
from beam_pipeline.report.source import photographs
from transforms.storage import files
from transforms.types import ReadingConfig

PAGE = "index.html"


def write_photographs(
    output: str,
    wanted: Sequence[StoredImage],
    reading: ReadingConfig,
    root: str,
    index: IndexManifest | None = None,
) -> dict[str, Photograph]:
    """Writes thumbnails of photographs, of which some may be gone, below `output`; arguments and result as
    `source.photographs`.
    """

    def write(number: int, content: bytes) -> None:
        files.write_bytes(files.join(output, href(number)), content)

    wrong = list(thumbnails(wanted, reading, write))
    return photographs(wanted, wrong, href, root, index)


def write(output: str, template: str, assets: Sequence[str] = (), **context: Any) -> str:
    """Writes the page, last, and what it loads; returns its place."""
    for asset in ("style.css", *assets):
        files.write_bytes(files.join(output, asset), template_text(asset).encode())
    text = TEMPLATES.get_template(template).render(page="", pages=[], **{"run_key": "", **context})
    page = files.join(output, PAGE)
    files.write_bytes(page, text.encode())
    return page
