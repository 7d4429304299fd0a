"""Commands that are stopped, killed or cannot write: the same command resumes them, with --overwrite too."""

# ruff: noqa: F811 (fixtures are imported, and named by the tests that use them)

import csv
import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
from helpers import failing_disk, slide_files
from helpers.paths import ROOT
from helpers.segment_command import EVERYTHING, Killed, call, command, contents, one_line, statuses_in, summary_of
from helpers.segmented_slide import finished, runs, slide  # noqa: F401 (fixtures)
from helpers.slides_small import tissue_picture

from bcss_jax.api import segmentation
from bcss_jax.common import files
from bcss_jax.errors import Preempted, StorageError
from bcss_jax.slides.batch import segment_slide, slide_folder
from bcss_jax.slides.batch.overwrite_journal import OverwriteJournal
from bcss_jax.slides.store import probability_store


@pytest.mark.parametrize("place", ("finish", "delete_work", "pyramid", "regions", "overlay", "labelling"))
def test_after_a_kill_between_the_results_the_same_command_gives_the_same_bytes(
    runs, slide, finished, tmp_path, monkeypatch, place
):
    def killed(*_):
        raise Killed

    class Clock(segment_slide.StageClock):
        def lap(self, name):
            super().lap(name)
            if name == place:
                raise Killed

    with monkeypatch.context() as patch:
        if place in ("finish", "delete_work"):
            patch.setattr(segment_slide.SlideFolder, place, killed)
        else:
            patch.setattr(segment_slide, "StageClock", Clock)
        with pytest.raises(Killed):
            command(runs[0], slide, tmp_path, "--probabilities")
    if place != "delete_work":
        (tmp_path / "case" / f".overlay.png.{'a' * 16}.tmp").write_bytes(b"half a picture")
    assert command(runs[0], slide, tmp_path, "--probabilities") == 0
    assert contents(tmp_path / "case") == contents(finished)
    assert not (tmp_path / "case" / ".work").exists()
    (tmp_path / "case" / "overlay.png").unlink()  # a missing file is written again
    assert command(runs[0], slide, tmp_path, "--probabilities") == 0
    assert contents(tmp_path / "case") == contents(finished)


@pytest.fixture
def three(runs, tmp_path):
    """Options of a command for a list of three slides, which are done."""
    for number in range(3):
        slide_files.tiled(tmp_path / f"{number}.tif", tissue_picture(40, 40, seed=number)[0])
    (tmp_path / "list.csv").write_text("slide\n0.tif\n1.tif\n2.tif\n")
    options = [f"--slides={tmp_path / 'list.csv'}", "--readers=1", *EVERYTHING, f"--checkpoint={runs[0]}"]
    options.append(f"--output={tmp_path / 'out'}")
    assert call(*options) == 0
    return options


def stamps(output):
    """Returns when the labels of each slide were written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in output.glob("*/labels.ome.tif")}


def notes(output):
    return [path.name for path in output.glob(".overwrite-*")]


@pytest.mark.parametrize("shard", (None, "0/1"))
def test_an_overwrite_that_was_killed_is_resumed(three, tmp_path, capsys, monkeypatch, shard):
    options = [*three, "--overwrite", *([] if shard is None else [f"--shard={shard}"])]
    before, begun = stamps(tmp_path / "out"), []

    def killed_at_the_second(*arguments, **others):
        begun.append(others["label"])
        if len(begun) == 2:
            raise Killed
        return label_slide(*arguments, **others)

    label_slide = segment_slide.labeling.label_slide
    with monkeypatch.context() as patch:
        patch.setattr(segment_slide.labeling, "label_slide", killed_at_the_second)
        with pytest.raises(Killed):
            call(*options)
    assert notes(tmp_path / "out") == [".overwrite-0of1"]
    first = stamps(tmp_path / "out")
    assert first["0"] > before["0"] and first["2"] == before["2"] and "1" not in first
    half = tmp_path / "out" / "1" / ".work" / "labels"
    (half / "row-999999").touch()
    with monkeypatch.context() as patch:
        patch.setattr(segment_slide.SlideFolder, "delete_work", lambda _: None)  # keeps what was resumed
        assert call(*options) == 0
    capsys.readouterr()
    after = stamps(tmp_path / "out")
    assert (half / "row-999999").exists() and after["0"] == first["0"] and after["2"] > before["2"]
    assert not notes(tmp_path / "out")
    assert call(*options) == 0  # it has ended, so the next one starts from the beginning
    assert "done before" not in capsys.readouterr().out
    assert all(time > after[name] for name, time in stamps(tmp_path / "out").items())


def test_the_table_of_a_list_is_written_at_the_end_and_not_after_each_slide(three, tmp_path, monkeypatch):
    """Writing it looks into all folders, including those of other shards."""
    written, write = [], segmentation.batch_summary.write_table
    monkeypatch.setattr(segmentation.batch_summary, "write_table", lambda *arguments: written.append(write(*arguments)))
    assert call(*three) == 0
    assert len(written) == 1 and statuses_in(tmp_path / "out") == ["done"] * 3
    monkeypatch.setattr(segmentation.batch_summary, "INTERVAL_S", 0)
    assert call(*three) == 0
    assert len(written) == 1 + 3 + 1


@pytest.mark.parametrize("error, code", ((Preempted("stopped"), 75), (StorageError("no space"), 5)))
def test_the_table_of_a_stopped_list_shows_what_is_done(three, tmp_path, monkeypatch, error, code):
    def stopped(*arguments, label, **others):
        if label == "1.tif":
            raise error
        return label_slide(*arguments, label=label, **others)

    label_slide = segment_slide.labeling.label_slide
    (tmp_path / "out" / "summary.csv").unlink()
    monkeypatch.setattr(segment_slide.labeling, "label_slide", stopped)
    assert call(*three, "--overwrite") == code
    assert statuses_in(tmp_path / "out") == ["done", "pending" if code == 75 else "failed", "done"]


def test_an_overwrite_resumed_with_other_settings_replaces_its_results(three, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise Killed

    (tmp_path / "list.csv").write_text("slide\n0.tif\n")
    with monkeypatch.context() as patch:
        patch.setattr(segment_slide.results, "write", stopped)
        with pytest.raises(Killed):
            call(*three, "--overwrite")
    assert notes(tmp_path / "out")
    assert call(*three, "--overwrite", "--overlap=0.5") == 0 and not notes(tmp_path / "out")
    assert summary_of(tmp_path / "out" / "0")["identity"]["settings"]["overlap"] == 0.5


def test_an_overwrite_ends_if_slides_fail_and_separately_for_single_slides(three, runs, tmp_path, monkeypatch):
    (tmp_path / "1.tif").write_text("no slide any more")
    assert call(*three, "--overwrite") == 6 and not notes(tmp_path / "out")
    one = (f"--slide={tmp_path / '0.tif'}", *three[1:], "--overwrite")
    with monkeypatch.context() as patch:
        patch.setattr(segment_slide.SlideFolder, "finish", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            call(*one)
    assert notes(tmp_path / "out") == [".overwrite-slide-0"]
    assert call(*one) == 0 and not notes(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(segment_slide.SlideFolder, "finish", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            call(*one)
    assert call(*one[:-1]) == 0 and not notes(tmp_path / "out")  # a command without --overwrite ends it too


def test_half_a_line_in_the_journal_names_no_folder(tmp_path):
    notes = OverwriteJournal(tmp_path, "0of1")
    assert not notes.is_cleared(tmp_path / "case1")
    (tmp_path / ".overwrite-0of1").write_text('\n"case10"\n\n"case1')
    notes.add(tmp_path / "case7" / "unet")
    assert [notes.is_cleared(tmp_path / name) for name in ("case10", "case1", "case7/unet", "case7")] == [
        True, False, True, False,
    ]  # fmt: skip
    notes.delete()
    notes.delete()
    assert not list(tmp_path.iterdir())


def test_a_comparison_older_than_the_results_is_drawn_again(runs, slide, tmp_path, monkeypatch):
    both = ",".join(map(str, runs))
    assert command(both, slide, tmp_path) == 0
    picture = tmp_path / "case" / "comparison.png"
    drawn = picture.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(segmentation.comparison, "draw_comparison", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            command(both, slide, tmp_path, "--overwrite")
    assert command(both, slide, tmp_path, "--overwrite") == 0
    assert picture.stat().st_mtime_ns > drawn


def test_seconds_of_a_resumed_slide_are_marked_as_those_of_the_last_session(
    runs, slide, finished, tmp_path, capsys, monkeypatch
):
    def stopped(*_, **__):
        raise Preempted("stopped")

    (tmp_path / "list.csv").write_text(f"slide\n{slide}\n")
    options = (f"--slides={tmp_path / 'list.csv'}", f"--checkpoint={runs[0]}", f"--output={tmp_path}", "--readers=1")
    with monkeypatch.context() as patch:
        patch.setattr(segment_slide.results, "write", stopped)
        assert call(*options, *EVERYTHING) == 75
    assert call(*options, *EVERYTHING) == 0
    assert re.search(r"; \d+\.\d s since it was resumed\n", capsys.readouterr().out)
    assert summary_of(tmp_path / "case")["resumed"] is True and summary_of(finished)["resumed"] is False
    with open(tmp_path / "summary.csv", newline="") as file:
        assert [row["resumed"] for row in csv.DictReader(file)] == ["yes"]


def rows_in(folder):
    """Returns the rows of labels that an unfinished slide has."""
    return [] if (folder / "summary.json").exists() else sorted((folder / ".work" / "labels").glob("row-*"))


@pytest.mark.slow
def test_after_kills_at_random_moments_the_same_command_gives_the_same_bytes(runs, tmp_path):
    """Kills four times, or KILLS times, mostly while labels or results are written."""
    kills = int(os.environ.get("KILLS", 4))
    pixels, _ = tissue_picture(1700, 600, seed=5)
    slide = slide_files.tiled(tmp_path / "case.tif", pixels, tile=256)
    arguments = [sys.executable, "-m", "bcss_jax.segment", f"--checkpoint={runs[0]}", f"--slide={slide}", "--readers=2"]
    arguments += ["--probabilities", *EVERYTHING]

    def start(output):
        return subprocess.Popen([*arguments, f"--output={output}"], cwd=ROOT, stdout=-3, stderr=-3)

    def wait_for_rows(folder, process):
        while not rows_in(folder) and process.poll() is None:
            time.sleep(0.005)

    begin = time.monotonic()
    with start(tmp_path / "whole") as process:
        wait_for_rows(tmp_path / "whole" / "case", process)
        first = time.monotonic() - begin
        while not (tmp_path / "whole" / "case" / "summary.json").exists() and process.poll() is None:
            time.sleep(0.005)
        length = time.monotonic() - begin  # until the results are written; the process ends later
        assert process.wait() == 0
    expected = contents(tmp_path / "whole" / "case")
    rng = np.random.default_rng(0)
    at_work = 0
    for number in range(kills):
        folder = tmp_path / f"out{number // 2}" / "case"  # up to two kills of the same run
        with start(folder.parent) as process:
            if number % 4 == 3:
                time.sleep(rng.uniform(0.1, 1.0) * length)
            elif number % 2:
                time.sleep(rng.uniform(first, length))
            else:
                wait_for_rows(folder, process)
                time.sleep(rng.uniform(0, length - first))
            process.send_signal(signal.SIGKILL)
        before = rows_in(folder)
        at_work += bool(before)
        if number % 2 == 1 or number + 1 == kills:
            finished = (folder / "summary.json").exists()
            subprocess.run([*arguments, f"--output={folder.parent}"], cwd=ROOT, check=True, capture_output=True)
            assert contents(folder) == expected
            assert finished or summary_of(folder)["resumed"] is bool(before)  # rows that were written before are used
    assert at_work >= (kills / 2 if kills >= 10 else 1)


@pytest.fixture(scope="module")
def tall(tmp_path_factory):
    """A slide with two rows of tiles."""
    return slide_files.tiled(tmp_path_factory.mktemp("slides") / "case.tif", tissue_picture(600, 60)[0])


@pytest.fixture(scope="module")
def tall_finished(runs, tall, tmp_path_factory):
    output = tmp_path_factory.mktemp("tall") / "out"
    assert command(runs[0], tall, output) == 0
    return output / "case"


@pytest.mark.parametrize(
    "name, number, for_good",
    (
        ("row-000001", errno.ENOSPC, False),
        ("row-000001", errno.EROFS, True),
        ("labels.ome.tif", errno.EDQUOT, True),
        ("regions.geojson", errno.ENOSPC, False),
        ("overlay.png", errno.EROFS, True),
        ("summary.json", errno.ENOSPC, True),
    ),
)
def test_a_full_or_read_only_output_ends_with_5_and_the_same_command_resumes(
    runs, tall, tall_finished, tmp_path, capsys, monkeypatch, name, number, for_good
):
    """Nothing can be written from a file on, or only that file cannot be written, so that the failure can."""
    failed, replace = [], os.replace

    def full(source, destination):
        if os.path.basename(destination) == name or (failed and for_good):
            failed.append(destination)
            raise OSError(number, os.strerror(number), str(source), None, str(destination))
        replace(source, destination)

    folder = tmp_path / "case"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert command(runs[0], tall, tmp_path) == 5
    assert failed and f"cannot be written ({os.strerror(number)})" in one_line(capsys)
    there = {path.name for path in folder.rglob("*")}
    assert not there & {name, "summary.json"} and not [each for each in there if each.endswith(".tmp")]
    assert "row-000000" in there and ("failure.json" in there) is not for_good
    assert command(runs[0], tall, tmp_path) == 0
    assert summary_of(folder)["resumed"] and contents(folder) == contents(tall_finished)


WRITTEN = ("labels.ome.tif", "regions.geojson", "overlay.png", "summary.json", "row-000000", "tiles-000000.json",
           "seam-counts-000000.json", "identity.json", "probabilities.zarr/0/c/1/0/0")  # fmt: skip

FAULTS = ("EIO", "half of it", "killed before", "killed after")


class Fault:
    """Fails when one file is written: while it is flushed, or before or after it gets its name."""

    def __init__(self, patch, name, kind):
        self.kind, self.name, self.happened = kind, name, False
        self._sync, self._replace = files.sync, os.replace
        patch.setattr(files, "sync", self.sync)
        patch.setattr(probability_store, "sync", self.sync)
        patch.setattr(os, "replace", self.replace)

    def sync(self, path):
        is_chunk = path.as_posix().endswith(self.name)
        if is_chunk or re.fullmatch(rf"\.{re.escape(self.name)}\.[0-9a-f]+\.tmp", path.name):
            if self.kind in ("EIO", "half of it"):
                self.happened = True
                os.truncate(path, path.stat().st_size // (2 if self.kind == "half of it" else 1))
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            if is_chunk:
                self.happened = True
                if self.kind == "killed before":
                    os.truncate(path, path.stat().st_size // 2)
                raise Killed
        self._sync(path)

    def replace(self, source, destination):
        here = os.path.basename(destination) == self.name
        if here and self.kind == "killed before":
            self.happened = True
            half = os.path.join(os.path.dirname(destination), f".{self.name}.{'a' * 16}.tmp")
            with open(source, "rb") as file, open(half, "wb") as kept:
                kept.write(file.read()[: os.path.getsize(source) // 2])
            raise Killed
        self._replace(source, destination)
        if here and self.kind == "killed after":
            self.happened = True
            raise Killed


@pytest.mark.parametrize(
    "name, kind",
    [
        pytest.param(name, kind, marks=[] if number % 7 == 0 else [pytest.mark.slow])
        for number, (name, kind) in enumerate(itertools.product(WRITTEN, FAULTS))
    ],
)
def test_after_a_fault_in_any_file_the_same_command_gives_the_same_bytes(
    runs, slide, finished, tmp_path, monkeypatch, capsys, name, kind
):
    folder = tmp_path / "case"
    with monkeypatch.context() as patch:
        fault = Fault(patch, name, kind)
        if kind.startswith("killed"):
            with pytest.raises(Killed):
                command(runs[0], slide, tmp_path, "--probabilities")
        else:
            assert command(runs[0], slide, tmp_path, "--probabilities") == 5
            assert "cannot be written (Input/output error)" in one_line(capsys)
    assert fault.happened
    assert slide_folder.status_of(folder).name != "done" or (name, kind) == ("summary.json", "killed after")
    assert command(runs[0], slide, tmp_path, "--probabilities") == 0
    assert contents(folder) == contents(finished)
    assert not (folder / ".work").exists() and not list(folder.rglob("*.tmp"))


def test_finished_labels_that_changed_are_computed_again(runs, slide, finished, tmp_path, caplog, monkeypatch):
    folder = tmp_path / "case"
    shutil.copytree(finished, folder)
    computed, label_slide = [], segment_slide.labeling.label_slide
    monkeypatch.setattr(
        segment_slide.labeling, "label_slide", lambda *args, **kw: computed.append(label_slide(*args, **kw))
        or computed[-1]
    )  # fmt: skip
    for name in ("regions.geojson", "overlay.png"):
        path, content = folder / name, (folder / name).read_bytes()
        path.write_bytes(content + b" ")
        assert command(runs[0], slide, tmp_path, "--probabilities") == 0 and not computed
        assert f"{path}: has changed since it was written; it stays as it is" in caplog.text
        path.write_bytes(content)
    chunk, labels = folder / "probabilities.zarr" / "0" / "c" / "1" / "0" / "0", folder / "labels.ome.tif"
    for number, (path, named) in enumerate(((labels, labels), (chunk, folder / "probabilities.zarr")), 1):
        path.write_bytes(path.read_bytes()[:-1])
        assert command(runs[0], slide, tmp_path, "--probabilities") == 0 and len(computed) == number
        assert f"{named}: has changed since it was written; the slide is computed again" in caplog.text
        for kept in folder.glob("*.kept-1"):
            kept.unlink()
        assert contents(folder) == contents(finished)


def test_a_comparison_of_damaged_labels_is_one_error(runs, slide, tmp_path, capsys):
    both = ",".join(map(str, runs))
    assert command(both, slide, tmp_path) == 0
    labels = tmp_path / "case" / "one" / "labels.ome.tif"
    (tmp_path / "case" / "comparison.png").unlink()
    (labels.parent / ".lock").unlink()  # as in results of earlier versions
    labels.write_bytes(labels.read_bytes()[:500])
    capsys.readouterr()
    assert command(both, slide, tmp_path) == 3
    assert f"{labels}: expected the labels of a slide as a tiled pyramid" in one_line(capsys)


def test_an_output_below_a_file_is_refused(runs, tall, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "list.csv").write_text(f"slide\n{tall}\n")
    for slides in (f"--slide={tall}", f"--slides={tmp_path / 'list.csv'}"):
        for output in (tmp_path / "file", tmp_path / "file" / "out"):
            assert call(f"--checkpoint={runs[0]}", slides, f"--output={output}") == 2
            assert "file: expected a folder for what is written, found a file" in one_line(capsys)


@pytest.mark.parametrize("tiles, code", ((1, 0), (6, 3)))
@pytest.mark.parametrize("name, compression", (("case.tif", "deflate"), ("case.svs", "jpeg2000")))
def test_unreadable_bytes_cost_one_tile_or_the_slide_if_there_are_many(
    runs, tmp_path, capsys, name, compression, tiles, code
):
    """One or six of 256 tiles; once the disk is repaired, the same command succeeds."""
    pixels = np.full((512, 512, 3), (200, 120, 170), np.uint8)
    pixels += np.random.default_rng(0).integers(0, 40, pixels.shape, np.uint8)
    write = slide_files.svs if name.endswith("svs") else slide_files.tiled
    slide = write(tmp_path / name, pixels, tile=32, compression=compression)
    with tifffile.TiffFile(slide) as tiff:
        offsets, counts = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
    first, end = offsets[100], offsets[99 + tiles] + counts[99 + tiles]
    options = (f"--checkpoint={runs[0]}", f"--slide={slide}", f"--output={tmp_path / 'out'}", "--readers=1")
    options += EVERYTHING
    with failing_disk.failing(failing_disk.compiled(tmp_path), slide, first, end):
        assert call(*options) == code
    if code:
        assert "over 1% of the tissue cannot be decoded" in one_line(capsys)
        assert not (tmp_path / "out" / "case" / "summary.json").exists()
    assert call(*options) == 0
    summary = summary_of(tmp_path / "out" / "case")
    assert summary["unreadable_area_mm2"] == pytest.approx(0 if code else 32**2 * 0.25**2 / 1e6)
