"""Files that this program writes and reads again, damaged: each reader reads them or refuses them in one line.

A sample of the damages runs in the suite, all of them with `-m slow`.
"""

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import damage, evaluation_small, nnunet_small
from helpers.slide_summaries import slide_summary
from ml_collections import ConfigDict

from bcss_jax import labels, metrics
from bcss_jax.common import files
from bcss_jax.common.json_files import parse_json
from bcss_jax.config import default
from bcss_jax.data import checks, tfrecords
from bcss_jax.data.inspection import inspect
from bcss_jax.errors import DataError, UserError
from bcss_jax.evaluation import nnunet_folds
from bcss_jax.evaluation.per_image_csv import per_image_scores, write_per_image
from bcss_jax.evaluation.results_folder import ResultsFolder
from bcss_jax.inference import exported_model
from bcss_jax.nnunet import cases, cross_validation, folds, plan_file, run
from bcss_jax.nnunet.fingerprint import extract_fingerprint
from bcss_jax.nnunet.network import class_and_arguments
from bcss_jax.nnunet.plan import make_plan
from bcss_jax.nnunet.postprocess import apply_postprocessing
from bcss_jax.nnunet.preprocess import preprocess
from bcss_jax.nnunet.run_files import read_fingerprint, read_postprocessing, read_splits
from bcss_jax.slides.batch import batch_summary, slide_folder
from bcss_jax.slides.batch.slide_list import Entry, read_list
from bcss_jax.slides.grid import Grid
from bcss_jax.training import workdir
from bcss_jax.viewer import page, results

SCHEME = labels.SCHEMES["tumor_stroma"]
SAMPLE = 60  # damages of each kind in the suite


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
      file: its path in the folder.
      content: JSON, or the text of a table.
      read: reads the file in the folder and uses what it says, as the program does.
      damages: from the content to the damages.
      rest: writes what else the folder holds.
    """

    file: str
    content: Any
    read: Callable[[Path], Any]
    damages: Callable[[Any], Iterable[damage.Damage]] = damage.of_json
    rest: Callable[[Path], Any] = lambda folder: None


def image_and_mask():
    image = np.random.RandomState(0).randint(1, 255, (40, 40, 3)).astype(np.uint8)
    return image, np.kron([[1, 2], [2, 1]], np.ones((20, 20), int)).astype(np.uint8)


FINGERPRINT = extract_fingerprint(*([each] * 6 for each in image_and_mask()), samples=600)
SPLITS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]
POSTPROCESSING = {"keep_largest": [[1, 2], [1]], "dice_before": {"1": 0.5, "2": None}, "dice_after": {"1": 0.6}}
COUNTS = np.array([[[5, 1, 0], [1, 9, 2], [0, 2, 7]]] * 2)
FOLD = metrics.scores(COUNTS, 1, ("background", "tumor", "stroma"), (1, 2)) | {
    "counts": {name: each.tolist() for name, each in zip("ab", COUNTS, strict=True)}
}
CHECKED = [
    checks.CheckedTile(f"t{i}", split, f"p{i}", checks.TileStats((8, 8), np.arange(22), f"d{i}".encode(), b"pair"))
    for i, split in enumerate(["train", "train", "val"])
]
REPORT = checks.report_on(CHECKED, "bcss22").to_json() | {"warnings": ["one"]}
TILES = {
    split: [
        {"key": f"{split}{i}", "barcode": "b", "patient": "p", "institute": "A2", "x": 0, "y": 8, "mpp": 0.25}
        | {"codes": "bcss22"}
        for i in range(REPORT["tiles"][split])
    ]
    for split in ("train", "val")
}
EXPORTED = {
    "format": exported_model.FORMAT, "name": "unet", "network": "unet", "label_scheme": SCHEME.to_json(),
    "classes": ["tumor", "stroma"], "mpp": 0.25, "window": 224, "tta": False, "params_sha256": "a" * 64,
    "checkpoint": {"which": "best", "step": 3, "epoch": 1},
}  # fmt: skip
IDENTITY = {"members": [{"params": "a"}], "data": {"mpp": 0.25}}


def read_prepared(folder):
    report = checks.CheckReport.from_json(tfrecords._read_prepared(folder / "report.json", checks.CheckReportJson))
    report.log(SCHEME, "bcss22")
    return report.counted()


def read_tables(folder):
    report = checks.CheckReport.from_json(REPORT)
    prepared = tfrecords.PreparedData(folder, "roi", "published", "bcss22", 0.25, "f", report)
    return [row["key"] + row["patient"] for split in prepared.splits for row in prepared.table(split)]


def read_checked_cases(folder):
    tiles = [type("Tile", (), {"key": each.key}) for each in CHECKED]
    usable, report = cases._checked(tiles, folder, False, 0.0)
    return usable, report.counted()


def read_plan(folder):
    plan = plan_file.read_plan(folder / "plans.json")
    data = SimpleNamespace(dataset=nnunet_small.DATASET)
    run._plan(ConfigDict({"plan": str(folder / "plans.json")}), data, FINGERPRINT)
    class_and_arguments(plan)
    with contextlib.suppress(DataError):  # of the case, which the program names
        preprocess(image_and_mask()[0], None, plan, nnunet_small.DATASET)
    return plan_file.plan_table(plan, FINGERPRINT, nnunet_small.DATASET)


def read_dataset(folder):
    found = cases._raw(folder, folder / "prepared", False)
    return found.scheme, make_plan(FINGERPRINT, found.dataset, dataset_name="x")


def write_raw_folder(folder):
    from PIL import Image

    image, mask = image_and_mask()
    for name, pixels in (("imagesTr/a_0000.png", image), ("labelsTr/a.png", mask)):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def trained_names(folder):
    metadata = {
        str(number): {"plan": {}, "data_sha256": folds.fold_sha256(FINGERPRINT, split, {})}
        for number, split in enumerate(SPLITS)
    }
    return nnunet_folds._trained_names(folder, metadata)


def write_run(folder):
    (folder / "splits_final.json").write_text(json.dumps(SPLITS))
    (folder / "dataset_fingerprint.json").write_text(json.dumps(FINGERPRINT))


def read_own_fingerprint(folder):
    found = read_fingerprint(folder / "dataset_fingerprint.json", "take it again")
    return make_plan(found, nnunet_small.DATASET, dataset_name="x")


def read_own_postprocessing(folder):
    return apply_postprocessing(image_and_mask()[1], read_postprocessing(folder / "postprocessing.json", "again"))


def summarize(folder):
    scheme = labels.LabelScheme("nnunet", ("background", "tumor", "stroma"), 3, (1, 2))
    return cross_validation.summarize(folder, [{"train": [], "val": ["a", "b"]}], scheme, {})


def write_results(folder):
    evaluation, pictures = evaluation_small.evaluation()
    chosen = {"rank": "worst", "place": 1, "key": "t0", "dice": 0.5, "files": {"image": "per_image.csv"}}
    evaluation |= {"gallery": [chosen], "seconds": {"input": 1.0}}
    images = [{"key": f"t{i}", "patient": "p", "institute": "A2"} for i in range(4)]
    counts = np.array([[[0, 0, 0], [0, 9, 2], [0, 2, 7]]] * 4)
    made = ResultsFolder(folder, {"tta": False}, False)
    made.claim()
    (folder / "unet").mkdir()
    rows = per_image_scores(images, counts, np.ones((4, 2)), np.ones((4, 2)), SCHEME)
    write_per_image(folder / "unet" / "per_image.csv", rows)
    made.finish("unet", IDENTITY, evaluation)
    made.write_summary([], [])
    assert made.load_finished("unet", IDENTITY) == json.loads(json.dumps(evaluation))  # sound results are found


def written_results(tmp_path_factory, file):
    folder = tmp_path_factory.mktemp("written")
    write_results(folder)
    return (folder / file).read_text()


def read_results(folder):
    ResultsFolder(folder, {"tta": True}, True).claim()
    return ResultsFolder(folder, {"tta": False}, True)


def read_finished(folder):
    """Damaged results count as missing, so what is found is what was written."""
    found = ResultsFolder(folder, {"tta": False}, True)
    found.check("unet", IDENTITY)
    finished = found.load_finished("unet", IDENTITY)
    sound = json.loads((folder / "sound.json").read_text())["evaluation"]
    assert finished is None or finished | {"seconds": sound["seconds"]} == sound  # times are not part of the digest


def summary():
    grid = Grid(80, 60, 0.25, (1.0, 1.0))
    dice = {"dice": {"tumor": 0.5, "stroma": None, "macro": 0.5}}
    return slide_summary(Path("b.png"), 80, 60, grid, scores=dice, scores_of_region=dice).to_json()


def read_slide(folder):
    found = slide_folder.read_summary(folder / "case" / "summary.json")
    batch_summary.line_of(found, "1/2", folder, slide_folder.Done.COMPUTED)
    batch_summary._table(folder, [Entry(Path("case.png"))], False)
    shown = results.result_in(folder / "case", folder)
    page.slide_page(shown, [shown], None, None, [], None, True)
    page.list_page([shown])


def read_failure(folder):
    batch_summary._table(folder, [Entry(Path("case.png"))], False)


def read_identity(folder):
    slide_folder.SlideFolder(folder / "case", {"files": {}, "settings": {}}).check()


def make_case(folder):
    (folder / "case" / ".work" / "labels").mkdir(parents=True)
    (folder / "case" / ".work" / "labels" / "row-000000").touch()


def claim(folder):
    (folder / "history.csv").touch()
    workdir.claim(folder, json.loads(default().to_json()), False)


def parsed(path):
    return parse_json(path.read_bytes())


SLIDES = "slide,mpp,name,truth\na.svs,0.25,a,\nb.svs,,b,b.png\n"
KINDS = {
    "report of prepared data": Kind("report.json", REPORT, read_prepared),
    "tables of prepared data": Kind("tables.json", TILES, read_tables),
    "checked cases": Kind("cases.json", {"usable": ["t0", "t1", "t2"], "report": REPORT}, read_checked_cases),
    "plan": Kind("plans.json", make_plan(FINGERPRINT, nnunet_small.DATASET, dataset_name="x"), read_plan),
    "raw data set": Kind("dataset.json", nnunet_small.DATASET, read_dataset, rest=write_raw_folder),
    "splits": Kind("splits_final.json", SPLITS, trained_names, rest=write_run),
    "fingerprint of a run": Kind("dataset_fingerprint.json", FINGERPRINT, trained_names, rest=write_run),
    "fingerprint": Kind("dataset_fingerprint.json", FINGERPRINT, read_own_fingerprint),
    "postprocessing": Kind("postprocessing.json", POSTPROCESSING, read_own_postprocessing),
    "scores of a fold": Kind("fold_0/validation/summary.json", FOLD, summarize),
    "list of splits": Kind("splits_final.json", SPLITS, lambda f: read_splits(f / "splits_final.json", "again")),
    "config": Kind("config.json", json.loads(default().to_json()) | {"label_scheme": SCHEME.to_json()}, claim),
    "exported network": Kind("model.json", EXPORTED, lambda f: exported_model._checked(parsed(f / "model.json"))),
    "label scheme": Kind("model.json", SCHEME.to_json(), lambda f: labels.scheme_from_json(parsed(f / "model.json"))),
    "summary of a slide": Kind("case/summary.json", summary(), read_slide),
    "failure of a slide": Kind("case/failure.json", {"reason": "a\nb", "exit_code": 3}, read_failure),
    "identity of labels": Kind(
        "case/.work/identity.json",
        {"files": {"slide": {"bytes": 3}}, "settings": {"truth": 1}},
        read_identity,
        rest=make_case,
    ),
    "inspection": Kind(
        "inspect.json",
        {"settings": {"data.layout": "sample"}, "classes": {}},
        lambda f: inspect._check_output(f, {}, False),
    ),
    "list of slides": Kind("list.csv", SLIDES, lambda f: read_list(f / "list.csv"), damage.of_csv),
}  # fmt: skip
RESULTS = {
    "evaluation": ("evaluation.json", read_results),
    "scores": ("unet/scores.json", read_finished),
    "scores of each image": ("unet/per_image.csv", read_finished),
}


def check(kind: Kind, folder: Path, damages: Iterable[damage.Damage]) -> None:
    """Reads the file with each of the damages."""
    path = folder / kind.file
    path.parent.mkdir(parents=True, exist_ok=True)
    kind.rest(folder)
    failures = []
    for name, content in damages:
        path.write_bytes(content)
        try:
            kind.read(folder)
        except UserError as error:
            message = str(error)
            if len(message.splitlines()) != 1 or len(message) > 2000:
                failures.append(f"{name}: {message[:300]!r}")
            elif path.name not in message and "of other settings" not in message and "of another config" not in message:
                failures.append(f"{name}: no file in {message[:300]!r}")
        except ValueError as error:
            if kind.file != "model.json" or len(str(error).splitlines()) != 1:  # its archive is named by the caller
                failures.append(f"{name}: ValueError {error!r:.300}")
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__} {error!s:.300}")
    assert failures == []


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, name):
    kind = KINDS[name]
    check(kind, tmp_path, damage.sample(kind.damages(kind.content), SAMPLE))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_damage_is_read_or_refused_in_one_line(tmp_path, name):
    kind = KINDS[name]
    check(kind, tmp_path, kind.damages(kind.content))


@pytest.mark.parametrize("name", [pytest.param(name) for name in RESULTS])
@pytest.mark.parametrize("count", [SAMPLE, pytest.param(10**9, marks=pytest.mark.slow)])
def test_results_of_an_evaluation_that_are_damaged_count_as_missing(tmp_path, tmp_path_factory, name, count):
    file, read = RESULTS[name]
    text = written_results(tmp_path_factory, file)
    damages = damage.of_csv(text) if file.endswith("csv") else damage.of_json(json.loads(text))
    write_results(tmp_path)
    (tmp_path / "sound.json").write_text((tmp_path / "unet" / "scores.json").read_text())
    check(Kind(file, None, read), tmp_path, damage.sample(damages, count))


def test_the_damages_find_a_reader_that_trusts_its_file(tmp_path):
    kind = KINDS["postprocessing"]._replace(
        read=lambda folder: json.loads((folder / "postprocessing.json").read_text())["keep_largest"][0]
    )
    with pytest.raises(AssertionError, match="TypeError"):
        check(kind, tmp_path, damage.sample(kind.damages(kind.content), SAMPLE))


def test_a_changed_picture_of_the_gallery_counts_as_missing(tmp_path, caplog):
    evaluation, _ = evaluation_small.evaluation()
    write_results(tmp_path)
    folder, picture = ResultsFolder(tmp_path, {"tta": False}, True), tmp_path / "unet" / "gallery" / "a.png"
    picture.parent.mkdir()
    files.write_bytes(picture, b"picture")
    evaluation |= {
        "gallery": [{"rank": "worst", "place": 1, "key": "t0", "dice": 0.5, "files": {"i": "gallery/a.png"}}]
    }
    folder.finish("unet", IDENTITY, evaluation | {"seconds": {"input": 1.0}})
    assert folder.load_finished("unet", IDENTITY) is not None
    picture.write_bytes(b"another")
    assert folder.load_finished("unet", IDENTITY) is None and "missing or damaged; evaluating again" in caplog.text
