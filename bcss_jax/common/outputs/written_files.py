"""Records which files of a folder this program wrote, so that it never replaces or deletes the files of others.

Every folder of results has a hidden file, `RECORD`. Its first line names the process that works in the folder, which
holds a lock on the file (`files.locked`). A line follows for each file that was written there: name, size and digest.
There are three kinds of files that stand where this program writes:

* own files, which the record lists as they are: they are replaced or deleted;
* own files that were changed since (edited, replaced under the same name, or damaged): they are kept, renamed;
* files and links that are not in the record: they are refused before anything is computed.

Folders that were written before there were records have none. The command that recognizes such a folder by its content
calls `adopt`, after which all files in it are own files.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from bcss_jax.errors import ConfigError, printable

RECORD = ".lock"
HOLDER = 256  # bytes of the first line, which is padded with spaces
TREES = ("checkpoints", "tensorboard", "probabilities.zarr", ".work")  # folders that libraries fill
HASHED_BYTES = 1 << 16  # at both ends of a file, to recognize it
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_KEPT = re.compile(r".+\.kept-\d+")
log = logging.getLogger(__name__)

Content = tuple[int, str]  # size and digest


def check(paths: Iterable[Path], remedy: str = "move it away, or choose another folder") -> None:
    """Checks that a command may write to these paths, and deletes or writes nothing.

    Args:
      paths: files and folders that would be written. Folders may exist; the files in them are not checked.
      remedy: what the user can do, for the message.

    Raises:
      ConfigError: one of them is a link, or a file that this program did not write.
    """
    for path in paths:
        mode = _mode(path)
        if mode is None or stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise foreign(path, "a link" if stat.S_ISLNK(mode) else "a special file", remedy)
        if path.name not in _contents(path.parent):
            raise foreign(path, "one that it did not write", remedy)


def foreign(path: Path, found: str, remedy: str = "move it away, or choose another folder") -> ConfigError:
    """Returns the error for something that stands where this program would write."""
    return ConfigError(f"{printable(path)}: expected a file that this program wrote, found {found}; {remedy}")


def check_folders(*folders: Path) -> None:
    """Checks folders of files that this program makes inside its output, as `check_no_links` does.

    Raises:
      ConfigError: one of them also holds files although this program has written nothing into it.
    """
    check_no_links(*folders)
    for folder in folders:
        if not folder.is_dir() or folder.name in TREES or has_record(folder):
            continue
        # A run that ended early may have left its lock, or the folders of its libraries, and recorded nothing yet.
        if not all(is_hidden_own(entry.name) or entry.name in TREES for entry in folder.iterdir()):
            raise _foreign_folder(folder, "one with other files")


def check_no_links(*folders: Path) -> None:
    """Raises ConfigError if one of the folders, which this program makes inside its output, is a link or a file."""
    for folder in folders:
        mode = _mode(folder)
        if mode is not None and not stat.S_ISDIR(mode):
            raise _foreign_folder(folder, "a link" if stat.S_ISLNK(mode) else "a file")


def _foreign_folder(folder: Path, found: str) -> ConfigError:
    return ConfigError(
        f"{printable(folder)}: expected a folder that this program made, found {found}; move it away, or choose "
        "another folder"
    )


def check_tree(folder: Path, own: str) -> None:
    """Checks that a folder holds nothing but what this program wrote; the folder may be absent.

    Args:
      folder: that the command will replace or delete.
      own: regular expression of the paths of this program's files, relative to the folder, with `/`.

    Raises:
      ConfigError: the folder is a link or a file, or holds a link or another file.
    """
    check_no_links(folder)
    pattern = re.compile(own)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink():
                raise foreign(path, "a link")
            if name in files and not (is_hidden_own(name) or pattern.fullmatch(path.relative_to(folder).as_posix())):
                raise foreign(path, "one that it did not write")


def delete_tree(folder: Path, own: str) -> None:
    """Deletes a folder that `check_tree` accepts; raises its errors, and OSError."""
    check_tree(folder, own)
    if folder.is_dir():
        shutil.rmtree(folder)


def delete(folder: Path, names: Iterable[str]) -> None:
    """Deletes own files of a folder; own files that were changed are kept under another name, other files stay.

    Args:
      folder: of the files.
      names: of the files; those of a folder stand for the own files in it, and for the folder if it is empty then.

    Raises:
      OSError: a file cannot be deleted.
    """
    known = _contents(folder)
    for path in (folder / name for name in names):
        mode = _mode(path)
        if mode is not None and stat.S_ISDIR(mode):
            delete(path, [entry.name for entry in path.iterdir() if entry.name != RECORD])
            _delete_if_empty(path)
        elif mode is not None and stat.S_ISREG(mode) and path.name in known:
            keep_if_changed(path)
            path.unlink(missing_ok=True)


def _delete_if_empty(folder: Path) -> None:
    if {entry.name for entry in folder.iterdir()} <= {RECORD}:
        shutil.rmtree(folder)


def keep_if_changed(path: Path) -> None:
    """Renames an own file whose content is no longer that which this program wrote."""
    if not path.is_file() or content_of(path) in _contents(path.parent).get(path.name, ()):
        return
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.kept-{number}")):
        number += 1
    path.rename(kept)
    log.warning("%s: was changed since this program wrote it; kept as %s", printable(path), printable(kept.name))


def changed(folder: Path, names: Iterable[str]) -> list[str]:
    """Returns the names of those files that are missing or no longer as this program wrote them.

    Files that are not in the record, as those that were written before there were records, are not looked at. A folder
    in `TREES` counts as one file; see `add_tree`.
    """
    contents, found = _contents(folder), []
    for name in names:
        try:
            same = (
                name not in contents
                or (_tree_content(folder / name) if name in TREES else content_of(folder / name)) in contents[name]
            )
        except OSError:
            same = False
        if not same:
            found.append(name)
    return found


def is_hidden_own(name: str) -> bool:
    """Returns whether a name is that of a file which this program keeps beside its results."""
    return name == RECORD or bool(_UNFINISHED.fullmatch(name) or _KEPT.fullmatch(name))


def names(folder: Path) -> set[str]:
    """Returns the names of all files that this program has written into the folder; some may be gone."""
    return set(_contents(folder))


def has_record(folder: Path) -> bool:
    """Returns whether this program has written into the folder."""
    return bool(_contents(folder))


def adopt(folder: Path) -> None:
    """Records all files of a folder without a record, and of its subfolders, as written by this program.

    Args:
      folder: of results that were written before there were records. Links are not followed, and subfolders in
        `TREES` are left out: they are recognized by the names in them.

    Raises:
      OSError: a record cannot be written.
    """
    if not folder.is_dir() or has_record(folder):
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and entry.name not in TREES:
            adopt(entry)
    adopt_files(folder, [entry.name for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")])


def adopt_files(folder: Path, names: Iterable[str]) -> None:
    """Records those of the files that exist and are no links, in a folder without a record; raises OSError."""
    if not has_record(folder):
        files = [folder / name for name in names if stat.S_ISREG(_mode(folder / name) or 0)]
        _append(folder, [_line(path.name, content_of(path)) for path in files])


def add(path: Path, content: Content) -> None:
    """Records that a file with this content is about to be moved to `path`; raises OSError."""
    _append(path.parent, [_line(path.name, content)])


def add_tree(folder: Path) -> None:
    """Records what a folder in `TREES` holds: its JSON, and the names and sizes of its other files. Raises OSError."""
    _append(folder.parent, [_line(folder.name, _tree_content(folder))])


def _tree_content(folder: Path) -> Content:
    found, total = [], 0
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        size = path.lstat().st_size
        total += size
        found.append([path.relative_to(folder).as_posix(), content_of(path) if path.suffix == ".json" else size])
    return total, hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]


def content_of(path: Path) -> Content:
    """Returns what a file is recognized by: its size, and the digest of both its ends."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        ends = file.read(HASHED_BYTES)
        file.seek(max(0, size - HASHED_BYTES))
        ends += file.read(HASHED_BYTES)
    return size, hashlib.sha256(ends).hexdigest()[:32]


def open_own(path: Path, flags: int = 0) -> int:
    """Opens a file of this program to read and write, or makes it; never follows a link.

    Args:
      path: of the file.
      flags: further ones of `os.open`.

    Returns:
      The descriptor.

    Raises:
      ConfigError: the path is that of a link, a folder or a special file.
      OSError: it cannot be opened.
    """
    flags |= os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            found = "a link" if error.errno == errno.ELOOP else "a folder or a special file"
            raise foreign(path, found, "remove it") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise foreign(path, "a special file", "remove it")
    return descriptor


def holder(descriptor: int) -> str:
    """Returns the first line of an open `RECORD`: the process that works in the folder, or did last; or ""."""
    return os.pread(descriptor, HOLDER, 0).split(b"\n")[0].decode(errors="replace").strip()


def check_record(path: Path, descriptor: int) -> None:
    """Raises ConfigError if an open `RECORD` is a file of something else."""
    status, first = os.fstat(descriptor), holder(descriptor)
    another_name = status.st_nlink > 1 and not status.st_size  # an empty file of somebody
    if another_name or (first and not first.startswith("process ")) or (not first and 0 < status.st_size < HOLDER):
        raise foreign(path, "one that it did not write", "remove it")


def set_holder(descriptor: int, text: str) -> None:
    """Writes the first line of an open `RECORD`; raises OSError."""
    line = text.encode()[: HOLDER - 1].ljust(HOLDER - 1) + b"\n"
    if os.pwrite(descriptor, line, 0) < HOLDER:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _contents(folder: Path) -> dict[str, set[Content]]:
    """Returns what was written into a folder, by name; a file may have been replaced, or not yet."""
    found: dict[str, set[Content]] = {}
    if not stat.S_ISREG(_mode(folder / RECORD) or 0):
        return found
    for line in (folder / RECORD).read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, TypeError, RecursionError):  # a line that was cut short
            name, size, digest = json.loads(line)
            found.setdefault(str(name), set()).add((int(size), str(digest)))
    return found


def _append(folder: Path, lines: list[str]) -> None:
    path = folder / RECORD
    descriptor = open_own(path)
    try:
        check_record(path, descriptor)
        if os.fstat(descriptor).st_size < HOLDER:
            set_holder(descriptor, holder(descriptor))
    finally:
        os.close(descriptor)
    with os.fdopen(open_own(path, os.O_APPEND), "ab") as file:
        # An empty line comes first, after a line that was cut short.
        file.write("".join(f"\n{line}" for line in lines).encode() + b"\n")
        file.flush()  # all of it or an error, while a single call may write a part and say so only in its result
        os.fsync(file.fileno())


def _line(name: str, content: Content) -> str:
    return json.dumps([name, *content])


def _mode(path: Path) -> int | None:
    """Returns the mode of a path without following links; None if there is nothing."""
    try:
        return os.lstat(path).st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # the last if a folder is a link to itself
            raise
        return None
