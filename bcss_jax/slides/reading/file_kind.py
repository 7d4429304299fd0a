"""Names what a file is that no backend reads, so that it is not called damaged."""

FIRST_BYTES = 264  # that `kind_of_file` looks at

_KINDS = (
    (b"version https://git-lfs", "a pointer of Git LFS in place of the file"),
    (b"%PDF", "a PDF"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"BZh", "bzip2-compressed data"),
    (b"\xfd7zXZ", "xz-compressed data"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"ZISRAWFILE", "Zeiss CZI that OpenSlide does not read"),
    (b"BM", "a BMP image"),
    (b"GIF8", "a GIF image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"II\xbc", "a JPEG XR image"),
)
_IN_BOXES = {b"heic": "an HEIF image", b"mif1": "an HEIF image", b"avif": "an AVIF image"}
_UNSUPPORTED = ("unsupported", "not supported", "not implemented", "unrecognized", "unknown compression", "cannot read")


def kind_of_file(start: bytes) -> str | None:
    """Returns what a file is, or None if its first bytes do not tell.

    Args:
      start: the first `FIRST_BYTES` bytes, or all of a shorter file.
    """
    for magic, kind in _KINDS:
        if start.startswith(magic):
            return kind
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "a WebP image"
    if start[4:8] == b"ftyp" and start[8:12] in _IN_BOXES:
        return _IN_BOXES[start[8:12]]
    if not any(start):
        return "only zeros where a file begins (an incomplete download?)"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if text.startswith(b"<?xml") or text.startswith(b"<dataobject"):
        return "XML (an iSyntax file, or metadata of a slide)"
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in start):
        return "text"
    return None


def is_unsupported(message: str) -> bool:
    """Returns whether a library's message says that it does not support a file, rather than that it is damaged."""
    return any(phrase in message.lower() for phrase in _UNSUPPORTED)
