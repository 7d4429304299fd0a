"""Files that no reader supports are named by what they are, and are not called damaged."""

import gzip
import struct

import pytest
import tifffile
from helpers.slide_files import picture
from PIL import Image

from bcss_jax.errors import DataError
from bcss_jax.slides.reading.file_kind import is_unsupported
from bcss_jax.slides.reading.open_slide import open_slide


@pytest.mark.parametrize(
    "content, kind",
    (
        (b"version https://git-lfs.github.com/spec/v1\nsize 5\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (b"# A title\n", "text"),
        (b"\0" * 5000, "only zeros"),
        (gzip.compress(b"x" * 100, mtime=0), "gzip-compressed data"),
        (b"%PDF-1.7\n\xe2", "a PDF"),
        (b"\x89HDF\r\n\x1a\n\0\0", "HDF5"),
        (bytes(range(1, 200)), ""),
    ),
)
def test_the_kind_of_a_file_is_named(tmp_path, content, kind):
    path = tmp_path / "case.svs"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"found another format" + (rf" \({kind}" if kind else ";")) as caught:
        open_slide(path)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("name", ("WEBP", "BMP", "GIF"))
def test_images_of_other_formats_are_named(tmp_path, name):
    Image.fromarray(picture(50, 40)).save(tmp_path / "a.png", name)
    with pytest.raises(DataError, match=rf"\(an? {name} image".replace("WEBP", "WebP")):
        open_slide(tmp_path / "a.png")


@pytest.mark.parametrize("compression", (40000, 34717))
@pytest.mark.parametrize("layout", ({"tile": (64, 64)}, {"rowsperstrip": 16}))
def test_a_compression_without_a_decoder_is_named(tmp_path, compression, layout):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(100, 80), photometric="rgb", compression="zlib", metadata=None, **layout)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].tags["Compression"].valueoffset
    content = bytearray(path.read_bytes())
    content[offset : offset + 2] = struct.pack("<H", compression)
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"found {compression}, which is not supported"):
        open_slide(path)


def test_messages_of_libraries_are_told_apart():
    assert is_unsupported("Unsupported photometric interpretation YBR_FULL for 1.2.840")
    assert not is_unsupported("Cannot parse JPEG header: premature end")
