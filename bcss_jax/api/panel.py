"""HTML that a notebook shows for a result: a title, lines, tables and pictures, without scripts."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from bcss_jax.common.html import html_environment
from bcss_jax.errors import DataError, first_line, printable

LONGEST_SIDE = 1600  # pixels of a picture in a panel; a notebook keeps it as text


def panel(
    title: str,
    *,
    lines: Sequence[str] = (),
    tables: Sequence[Sequence[Sequence[str]]] = (),
    pictures: Sequence[tuple[str, Image.Image]] = (),
) -> str:
    """Returns an HTML fragment in which all text is escaped.

    Args:
      title: in bold.
      lines: of text below it.
      tables: rows of cells; the first row of each table is its header.
      pictures: caption and picture, as `read_picture` returns it.
    """
    template = html_environment("bcss_jax.api").get_template("panel.html")
    shown = [(caption, _data_uri(picture)) for caption, picture in pictures]
    return template.render(title=title, lines=lines, tables=tables, pictures=shown)


def read_picture(path: Path, remedy: str) -> Image.Image:
    """Returns a picture, which a notebook shows inline.

    Raises:
      DataError: there is no such picture, or it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.copy()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else first_line(error)
        raise DataError(f"{printable(path)}: expected a picture, found: {found}; {remedy}") from error


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Returns pictures one below the other, on white."""
    if len(pictures) == 1:
        return pictures[0]
    width, height = max(each.width for each in pictures), sum(each.height for each in pictures)
    sheet, y = Image.new("RGB", (width, height), "white"), 0
    for each in pictures:
        sheet.paste(each, (0, y))
        y += each.height
    return sheet


def _data_uri(picture: Image.Image) -> str:
    small, file = picture.copy(), io.BytesIO()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    small.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
