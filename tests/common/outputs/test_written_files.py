"""What this program wrote is replaced; files of others, links and changed files are not."""

import os
import resource

import pytest

from bcss_jax.common import files
from bcss_jax.common.outputs import written_files
from bcss_jax.errors import ConfigError, StorageError

OWN = r"own-\d+|inner/own-\d+"


def test_an_own_file_is_replaced_and_the_file_of_another_is_not(tmp_path):
    files.write_text(tmp_path / "table.md", "one")
    files.write_text(tmp_path / "table.md", "two")
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(ConfigError, match="report.html: expected a file that this program wrote, found one"):
        files.write_text(tmp_path / "report.html", "theirs")
    assert (tmp_path / "table.md").read_text() == "two" and (tmp_path / "report.html").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "report.html", written_files.RECORD}


@pytest.mark.parametrize("changed", ["edited", "replaced under the same name"])
def test_an_own_file_that_was_changed_is_kept_under_another_name(tmp_path, caplog, changed):
    path = tmp_path / "table.md"
    files.write_text(path, "one")
    if changed == "edited":
        path.write_text("edited")
    else:
        (tmp_path / "other").write_text("edited")
        os.replace(tmp_path / "other", path)
    files.write_text(path, "two")
    files.write_text(path, "three")
    assert path.read_text() == "three" and (tmp_path / "table.md.kept-1").read_text() == "edited"
    assert len(list(tmp_path.iterdir())) == 3
    assert "table.md: was changed since this program wrote it; kept as table.md.kept-1" in caplog.text


def test_a_file_that_a_killed_process_was_about_to_replace_is_own(tmp_path):
    files.write_text(tmp_path / "table.md", "one")
    written_files.add(tmp_path / "table.md", (3, "of the next content"))  # killed before the file was renamed
    files.write_text(tmp_path / "table.md", "two")
    assert not list(tmp_path.glob("*.kept*"))


@pytest.mark.parametrize("target", ["a file", "nothing", "a folder"])
def test_a_link_in_place_of_a_file_is_refused_and_its_target_stays(tmp_path, target):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "out"
    folder.mkdir()
    if target == "a file":
        elsewhere.write_text("mine")
    elif target == "a folder":
        elsewhere.mkdir()
    for name in ("table.md", "claim.lock", written_files.RECORD):
        (folder / name).symlink_to(elsewhere)
    for write in (lambda: files.write_text(folder / "table.md", ""), lambda: files.write_text(folder / "new", "")):
        with pytest.raises(ConfigError, match="found a link"):
            write()
    with pytest.raises(ConfigError, match=r"\.lock: .*found a link; remove it"), files.locked(folder):
        pass
    with pytest.raises(ConfigError, match=r"claim\.lock: .*found a link"), files.wait_for_lock(folder / "claim"):
        pass
    assert all(path.is_symlink() for path in folder.iterdir())
    assert elsewhere.exists() == (target != "nothing") and (target != "a file" or elsewhere.read_text() == "mine")


def test_locks_destroy_no_file(tmp_path):
    (tmp_path / "mine").write_text("mine")
    os.link(tmp_path / "mine", tmp_path / "claim.lock")
    with files.wait_for_lock(tmp_path / "claim"):
        pass
    os.link(tmp_path / "mine", tmp_path / ".lock")
    with pytest.raises(ConfigError, match=r"\.lock: .*found one that it did not write"), files.locked(tmp_path):
        pass
    (tmp_path / "empty").touch()
    (tmp_path / "out").mkdir()
    os.link(tmp_path / "empty", tmp_path / "out" / ".lock")
    with pytest.raises(ConfigError, match=r"\.lock: .*found one that it did not write"), files.locked(tmp_path / "out"):
        pass
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "empty").read_text() == ""


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_special_files_in_place_of_locks_are_refused(tmp_path, kind):
    os.mkfifo(tmp_path / ".lock") if kind == "fifo" else (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match="a special file"), files.locked(tmp_path):
        pass


def test_a_temporary_name_that_is_taken_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 16)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / f".table.md.{'0' * 16}.tmp").symlink_to(tmp_path / "mine")
    with pytest.raises(StorageError):
        files.write_text(tmp_path / "table.md", "theirs")
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "table.md").exists()


def test_temporary_files_of_killed_processes_are_deleted_and_those_in_use_are_not(tmp_path):
    stale = tmp_path / f".table.md.{'a' * 16}.tmp"
    stale.write_text("half")
    others = [tmp_path / ".table.md.tmp", tmp_path / ".table.md.notes", tmp_path / f".other.{'a' * 16}.tmp"]
    for path in others:
        path.write_text("mine")
    with files.whole_file(tmp_path / "table.md") as unfinished:
        unfinished.write_text("one")
        files.write_text(tmp_path / "table.md", "of another process")
        assert unfinished.exists() and not stale.exists()
    assert (tmp_path / "table.md").read_text() == "one" and all(path.exists() for path in others)
    assert not list(tmp_path.glob("*.kept*"))


def test_a_name_as_long_as_file_systems_allow_is_written(tmp_path):
    path = tmp_path / ("ä" * 125 + ".png")
    files.write_bytes(path, b"one")
    files.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_file_as_it_was(tmp_path, error):
    files.write_text(tmp_path / "table.md", "one")
    with pytest.raises(StorageError if isinstance(error, OSError) else KeyboardInterrupt):
        with files.whole_file(tmp_path / "table.md") as unfinished:
            unfinished.write_text("half")
            raise error
    assert (tmp_path / "table.md").read_text() == "one" and len(list(tmp_path.iterdir())) == 2


def test_content_and_folder_are_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.readlink(f"/proc/self/fd/{file}")))
    files.write_text(tmp_path / "table.md", "one")
    assert [os.path.basename(name).split(".")[1] for name in flushed[:2]] == ["table", "lock"]
    assert flushed[2:] == [str(tmp_path)]


def test_only_own_files_are_deleted(tmp_path):
    files.write_text(tmp_path / "table.md", "one")
    (tmp_path / "figures").mkdir()
    files.write_text(tmp_path / "figures" / "own.png", "one")
    files.write_text(tmp_path / "figures" / "edited.png", "one")
    (tmp_path / "figures" / "edited.png").write_text("edited")
    (tmp_path / "figures" / "mine.png").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "report.html").write_text("mine")
    written_files.delete(tmp_path, ["table.md", "figures", "report.html", "linked", "absent"])
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.name != written_files.RECORD}
    assert left == {
        "figures", "figures/edited.png.kept-1", "figures/mine.png", "elsewhere", "elsewhere/mine", "linked",
        "report.html",
    }  # fmt: skip


def test_a_tree_with_anything_else_is_not_deleted(tmp_path):
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "own-1").touch()
    (tree / "inner" / "own-2").touch()
    mine = tree / "inner" / "mine"
    for make in (lambda: mine.write_text("mine"), lambda: mine.symlink_to(tmp_path), mine.mkdir):
        make()
        if not (mine.is_dir() and not mine.is_symlink()):
            with pytest.raises(ConfigError, match="mine: expected a file that this program wrote"):
                written_files.delete_tree(tree, OWN)
            assert (tree / "own-1").exists()
            mine.unlink()
    written_files.delete_tree(tree, OWN)
    assert not tree.exists()
    tree.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="found a link"):
        written_files.delete_tree(tree, OWN)


def test_results_written_before_there_were_records_are_adopted_once(tmp_path):
    (tmp_path / "gallery").mkdir()
    for path in (tmp_path / "table.md", tmp_path / "gallery" / "a.png"):
        path.write_text("one")
    written_files.adopt(tmp_path)
    (tmp_path / "gallery" / "mine.png").write_text("mine")
    written_files.adopt(tmp_path)
    files.write_text(tmp_path / "gallery" / "a.png", "two")
    files.write_text(tmp_path / "table.md", "two")
    with pytest.raises(ConfigError):
        files.write_text(tmp_path / "gallery" / "mine.png", "two")


def test_a_damaged_record_is_read_as_far_as_it_goes(tmp_path):
    files.write_text(tmp_path / "table.md", "one")
    with open(tmp_path / written_files.RECORD, "ab") as record:
        record.write(b'\n["report.html", 12\n\xff\n{}\n3\n["x"]\n["a", [], {}]')
    files.write_text(tmp_path / "other.md", "one")
    files.write_text(tmp_path / "table.md", "two")
    assert written_files.names(tmp_path) >= {"table.md", "other.md"}


def test_the_lock_of_a_folder_keeps_its_record(tmp_path):
    """A lock of an earlier version has only the process, without padding."""
    (tmp_path / ".lock").write_text("process 1 on a host")
    for number in range(2):
        with files.locked(tmp_path):
            files.write_text(tmp_path / "table.md", str(number))
            assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert written_files.names(tmp_path) == {"table.md"}
    assert (tmp_path / ".lock").read_bytes().split(b"\n")[0].endswith(b" ")


def test_a_record_is_written_as_a_whole_or_the_file_is_not_replaced(tmp_path):
    """A single write to a full disk may write a part, and say so only in its result."""
    path = tmp_path / "table.md"
    files.write_text(path, "one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / written_files.RECORD).stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(StorageError):
            files.write_text(path, "two")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "one"
    files.write_text(path, "three")
    assert path.read_text() == "three" and {each.name for each in tmp_path.iterdir()} == {path.name, ".lock"}


def test_a_damaged_line_of_the_record_is_passed_over(tmp_path):
    files.write_text(tmp_path / "table.md", "one")
    with open(tmp_path / written_files.RECORD, "a") as file:
        file.write("\n" + "[" * 100_000 + '\n[1]\n{"a": 1}\n[null, "x", []]\n')
    files.write_text(tmp_path / "table.md", "two")
    assert (tmp_path / "table.md").read_text() == "two" and written_files.has_record(tmp_path)


def test_a_folder_that_is_a_link_to_itself_holds_nothing(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    written_files.check([tmp_path / "loop" / "table.md"])
    with pytest.raises(StorageError):
        files.write_text(tmp_path / "loop" / "table.md", "one")


def test_results_are_compared_with_what_was_written(tmp_path):
    tree = tmp_path / "probabilities.zarr"
    for name, content in (("zarr.json", "{}"), ("0/c/0", "chunk")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)

    def changed():
        return written_files.changed(tmp_path, [tree.name, "labels", "unknown"])

    (tmp_path / "labels").write_text("one")
    assert not changed()  # nothing is known of them
    (tmp_path / "labels").unlink()
    written_files.add_tree(tree)
    files.write_text(tmp_path / "labels", "one")
    assert not changed()
    for damage in (lambda path: path.write_text("on"), os.unlink, os.mkdir):
        damage(tmp_path / "labels")
        assert changed() == ["labels"]
    os.rmdir(tmp_path / "labels")
    os.mkfifo(tmp_path / "labels")
    (tree / "0/c/0").write_text("half")
    assert changed() == [tree.name, "labels"]
