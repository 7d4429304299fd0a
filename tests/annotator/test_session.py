"""Annotations in memory and in their file: nothing is lost, and nobody's work is overwritten."""

import errno
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import shapely
from helpers.paths import ROOT

from bcss_jax.annotator.drawing import edits, geojson_file, session
from bcss_jax.annotator.drawing.document import Conflict
from bcss_jax.annotator.drawing.geojson_file import Effort, SlideFacts
from bcss_jax.annotator.drawing.outline import BRUSH, MODEL, PROMPT, Outline, cleaned
from bcss_jax.annotator.drawing.palette import Palette
from bcss_jax.annotator.drawing.saved_file import SavedFile
from bcss_jax.annotator.drawing.session import Session
from bcss_jax.common import files
from bcss_jax.errors import ConfigError, DataError, InUseError, StorageError
from bcss_jax.labels import SCHEMES
from bcss_jax.slides.annotations.slide_labels import open_slide_labels

SLIDE = SlideFacts("case.svs", (4000, 3000), (0.5, 0.5), (100, 50))
PALETTE = Palette(SCHEMES["five_classes"])


def outline(area, name="Tumor", **more):
    return Outline(str(uuid.uuid4()), name, area, more.pop("source", PROMPT), **more)


def opened(path, slide=SLIDE):
    file = SavedFile(path)
    contents = geojson_file.read(path, slide, print) if file.exists else geojson_file.Contents([])
    return Session(file, contents, PALETTE, slide)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "case.geojson"


@pytest.fixture
def edited(path, monkeypatch):
    monkeypatch.setattr(session, "RETRY_SECONDS", 0.05)
    found = opened(path)
    yield found
    found.close()


EFFORT = Effort(1, 2.0)


def add(edited, new, effort=EFFORT):
    return edited.edit(lambda document: edits.add(document, PALETTE, new), effort)


def areas(edited):
    return {each.name: each.area for each in edited.state(-1).changed}


def test_an_edit_is_in_the_file_at_once_as_qupath_writes_it(edited, path):
    area = shapely.box(200, 100, 300.126, 200).difference(shapely.box(220, 120, 240, 140))
    add(edited, outline(cleaned(area), clicks=3))
    content = json.loads(path.read_bytes())
    (feature,) = content["features"]
    assert content["type"] == "FeatureCollection"
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"] == {"name": "Tumor", "color": [0xE6, 0x9F, 0x00]}
    assert feature["properties"]["measurements"]["clicks"] == 3
    assert feature["properties"]["measurements"]["area_um2"] == pytest.approx((100.13 * 100 - 400) * 0.25)
    rings = feature["geometry"]["coordinates"]
    assert feature["geometry"]["type"] == "Polygon" and len(rings) == 2
    assert sorted(map(tuple, rings[0][:4])) == [(100, 50), (100, 150), (200.13, 50), (200.13, 150)]
    assert content["bcss_jax"]["clicks"] == 1 and content["bcss_jax"]["minutes"] == 0.03


def test_what_was_saved_is_there_again(path):
    first = opened(path)
    one = outline(shapely.box(200, 100, 300, 200), source=BRUSH, clicks=2, seconds=4.5)
    other = outline(shapely.MultiPolygon([shapely.box(1000, 100, 1100, 200), shapely.box(1200, 100, 1300, 200)]), "ROI")
    add(first, one, Effort(2, 90))
    add(first, other, Effort(1, 30))
    first.close()
    again = opened(path)
    found = {each.id: each for each in again.state(-1).changed}
    assert found.keys() == {one.id, other.id} and again.state(-1).effort == Effort(3, 120)
    assert found[one.id].area.equals(one.area) and found[other.id].area.equals(other.area)
    assert (found[one.id].clicks, found[one.id].seconds, found[one.id].source) == (2, 4.5, BRUSH)
    assert found[other.id].name == "ROI"
    again.close()
    assert [each.name for each in path.parent.iterdir()] == ["case.geojson"]


def test_a_file_without_annotations_is_read_again(path):
    first = opened(path)
    first.undo(add(first, outline(shapely.box(200, 100, 300, 200))))
    first.close()
    again = opened(path)
    assert again.state(-1).changed == []
    again.close()


def test_the_layout_slides_reads_the_file_at_its_true_place(edited, path):
    add(edited, outline(shapely.box(200, 100, 300, 200)))
    add(edited, outline(shapely.box(300, 100, 400, 200), "Stroma"))
    scheme = SCHEMES["five_classes"]
    with open_slide_labels(path, scheme, SLIDE.size, mpp=SLIDE.mpp, origin=SLIDE.origin) as found:
        labels = found.labels(190, 90, 220, 120, 1)
    assert (labels[10:110, 10:110] == 1).all() and (labels[10:110, 110:210] == 2).all()
    assert (labels == 1).sum() == (labels == 2).sum() == 10_000  # and nothing else has a class


def test_undo_and_redo_bring_back_the_same_areas(edited, path):
    one, two = outline(shapely.box(200, 100, 300, 200)), outline(shapely.box(250, 100, 350, 200), "Stroma")
    first, second = add(edited, one), add(edited, two)
    assert areas(edited)["Tumor"].equals(shapely.box(200, 100, 250, 200))  # what is drawn last counts
    before = path.read_bytes()
    edited.undo(second)
    assert areas(edited).keys() == {"Tumor"} and areas(edited)["Tumor"].equals(one.area)
    edited.undo(first)
    assert areas(edited) == {}
    edited.redo(first)
    edited.redo(second)
    assert json.loads(path.read_bytes())["features"] == json.loads(before)["features"]
    with pytest.raises(Conflict):
        edited.redo(second)


def test_of_two_browsers_neither_undoes_the_work_of_the_other(edited):
    one = outline(shapely.box(200, 100, 300, 200))
    first = add(edited, one)
    seen = edited.state(-1).revision
    more = shapely.box(300, 100, 350, 200)
    edited.edit(lambda document: edits.extend(document, PALETTE, document.expect(one.id, seen), more, (1, 1)))
    with pytest.raises(Conflict, match="changed in another window"):
        edited.undo(first)
    with pytest.raises(Conflict, match="changed in another window"):
        edited.edit(lambda document: {document.expect(one.id, seen).id: None})
    assert areas(edited)["Tumor"].area == 15_000
    state = edited.state(seen)
    assert [each.id for each in state.changed] == [one.id] and state.removed == []
    edited.edit(lambda document: {one.id: None})
    assert edited.state(seen).removed == [one.id]


def test_areas_of_unknown_classes_stay_whole(edited):
    add(edited, outline(shapely.box(0, 0, 1000, 1000), "ROI", source="file"))
    add(edited, outline(shapely.box(100, 100, 200, 200)))
    assert areas(edited)["ROI"].area == 1_000_000 and areas(edited)["Tumor"].area == 10_000


def test_the_eraser_divides_and_removes(edited):
    one = outline(shapely.box(200, 100, 300, 200))
    add(edited, one)
    gone = edits.brushed([(250, 0), (250, 300)], 10, SLIDE.size)
    edited.edit(lambda document: edits.erase(document.outlines(), gone, (1, 0.5)))
    (found,) = edited.state(-1).changed
    assert found.area.geom_type == "MultiPolygon" and found.area.area == 8_000 and found.clicks == 1
    edited.edit(lambda document: edits.erase(document.outlines(), shapely.box(0, 0, 999, 999), (1, 0.5)))
    assert edited.state(-1).changed == []


def test_a_brush_stays_on_the_slide():
    assert edits.brushed([(-50, -50)], 10, SLIDE.size) is None
    dab = edits.brushed([(0, 1500)], 10, SLIDE.size)
    assert dab.bounds == (0, 1490, 10, 1510)


def test_suggestions_are_saved_when_they_are_accepted_and_do_not_come_again(path):
    model = [outline(shapely.box(x, 100, x + 100, 200), name, source=MODEL, accepted=False)
             for x, name in ((200, "Tumor"), (400, "Stroma"), (600, "Tumor"))]  # fmt: skip
    first = opened(path)
    assert first.suggest(model, "digest") == 3
    add(first, outline(shapely.box(550, 100, 650, 200), "Stroma"))  # cuts the third
    assert len(json.loads(path.read_bytes())["features"]) == 1
    first.edit(lambda document: edits.accept(document, PALETTE, [document.get(model[0].id)]))
    first.edit(lambda document: {model[1].id: None})
    first.close()
    assert len(json.loads(path.read_bytes())["features"]) == 2
    again = opened(path)
    assert again.suggest(model, "digest") == 1
    (left,) = [each for each in again.state(-1).changed if not each.accepted]
    assert left.id == model[2].id and left.area.equals(shapely.box(650, 100, 700, 200))
    again.close()


def test_a_full_disk_loses_nothing_and_is_said(edited, path, monkeypatch):
    add(edited, outline(shapely.box(200, 100, 300, 200)))
    before, write = path.read_bytes(), files.write_bytes

    def full(*arguments, **options):
        with files.storage_errors(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "write_bytes", full)
    add(edited, outline(shapely.box(500, 100, 600, 200), "Stroma"))
    problem = edited.state(-1).problem
    assert problem.kind == "storage" and "No space left" in problem.text and str(path) in problem.text
    assert path.read_bytes() == before and len(edited.state(-1).changed) == 2
    assert len(json.loads(edited.content())["features"]) == 2  # what the page offers to download
    monkeypatch.setattr(files, "write_bytes", write)
    deadline = time.monotonic() + 20
    while edited.state(-1).problem and time.monotonic() < deadline:
        time.sleep(0.05)
    assert edited.state(-1).problem is None and len(json.loads(path.read_bytes())["features"]) == 2


def test_what_cannot_be_saved_at_the_end_is_kept_elsewhere_and_an_error(path, monkeypatch, tmp_path_factory):
    found = opened(path)
    write = files.write_bytes

    def full(target, *arguments, **options):
        if target.parent == path.parent:
            raise StorageError("disk is full")
        write(target, *arguments, **options)

    monkeypatch.setattr(files, "write_bytes", full)
    monkeypatch.setattr(session.tempfile, "gettempdir", lambda: str(tmp_path_factory.mktemp("temporary")))
    add(found, outline(shapely.box(200, 100, 300, 200)))
    with pytest.raises(StorageError, match="not saved: disk is full; they are in .*case.geojson.unsaved-1") as error:
        found.close()
    rescued = Path(str(error.value).rpartition(" ")[2])
    assert len(json.loads(rescued.read_bytes())["features"]) == 1 and not path.exists()


def test_at_the_end_annotations_are_kept_beside_a_file_that_another_program_has_changed(path):
    found = opened(path)
    add(found, outline(shapely.box(200, 100, 300, 200)))
    path.write_text("theirs")
    add(found, outline(shapely.box(500, 100, 600, 200)))
    with pytest.raises(StorageError, match="was changed by another program; they are in .*case.geojson.unsaved-1"):
        found.close()
    assert path.read_text() == "theirs"
    assert len(json.loads(path.with_name("case.geojson.unsaved-1").read_bytes())["features"]) == 2


def test_a_file_that_qupath_has_changed_is_not_overwritten(edited, path):
    mine = outline(shapely.box(200, 100, 300, 200))
    add(edited, mine)
    content = json.loads(path.read_bytes())
    del content["bcss_jax"]
    content["features"][0]["properties"]["classification"]["name"] = "Stroma"
    theirs = json.dumps(content).encode()
    path.write_bytes(theirs)
    number = add(edited, outline(shapely.box(500, 100, 600, 200), "Necrosis"))
    assert edited.state(-1).problem.kind == "changed" and path.read_bytes() == theirs
    taken = edited.take_the_files()
    assert areas(edited).keys() == {"Stroma"} and edited.state(-1).problem is None
    assert path.with_name("case.geojson.kept-1").read_bytes() == theirs  # it may hold more than areas
    assert json.loads(path.read_bytes())["bcss_jax"]["command"] == "annotate"
    edited.undo(taken)
    assert areas(edited).keys() == {"Tumor", "Necrosis"}
    edited.undo(number)


def test_the_file_of_another_program_is_kept_under_another_name(edited, path):
    add(edited, outline(shapely.box(200, 100, 300, 200)))
    path.write_text("theirs")
    add(edited, outline(shapely.box(500, 100, 600, 200), "Stroma"))
    kept = edited.keep_mine()
    assert kept.name == "case.geojson.kept-1" and kept.read_text() == "theirs"
    assert edited.state(-1).problem is None and len(json.loads(path.read_bytes())["features"]) == 2


def test_a_file_that_was_deleted_is_written_again(edited, path):
    add(edited, outline(shapely.box(200, 100, 300, 200)))
    path.unlink()
    add(edited, outline(shapely.box(500, 100, 600, 200), "Stroma"))
    assert edited.state(-1).problem is None and len(json.loads(path.read_bytes())["features"]) == 2


def test_a_file_is_edited_by_one_process(edited, path):
    with pytest.raises(InUseError, match="another process that annotates"):
        SavedFile(path)


@pytest.mark.parametrize("kind", ["link", "folder", "nowhere"])
def test_links_folders_and_missing_folders_are_refused(tmp_path, kind):
    path = tmp_path / "case.geojson"
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    else:
        path = tmp_path / "missing/case.geojson"
    with pytest.raises(ConfigError):
        SavedFile(path)


def test_annotations_of_another_slide_are_refused(path):
    first = opened(path)
    add(first, outline(shapely.box(200, 100, 300, 200)))
    first.close()
    with pytest.raises(DataError, match="expected annotations of other.svs"):
        geojson_file.read(path, SLIDE._replace(name="other.svs", size=(500, 500)), print)


KILLED = """
import sys, uuid, shapely
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_session import add, opened, outline
edited = opened(Path({path!r}))
for number in range(100_000):
    add(edited, outline(shapely.box(10 * (number % 300), 0, 10 * (number % 300) + 9, 2000)))
    print(number + 1, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 7, 40])
def test_a_killed_process_leaves_a_whole_file_with_all_that_was_answered(path, lines):
    code = KILLED.format(tests=str(ROOT / "tests/annotator"), path=str(path))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    for _ in range(lines):
        answered = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert len(json.loads(path.read_bytes())["features"]) >= answered >= lines
    again = opened(path)  # the lock has ended with the process
    again.close()
