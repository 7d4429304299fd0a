"""What is begun with: files of this command and of others, a model's regions, and what is refused."""

import http.client
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import shapely
from helpers.annotator_small import STROMA, TUMOR, ServedAnnotator, slide_of_discs
from helpers.paths import ROOT
from helpers.references import foundation_case
from helpers.viewer_small import write_result
from PIL import Image
from safetensors.numpy import save_file

from bcss_jax.commands import annotate
from bcss_jax.errors import ConfigError, DataError

WIDTH, HEIGHT = 500, 400
DISCS = [(201, 203, 60, TUMOR), (400, 300, 50, STROMA)]


@pytest.fixture
def slide(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return slide_of_discs(tmp_path / "case.png", WIDTH, HEIGHT, DISCS)


def feature(area, name="Tumor", **more):
    properties = {"objectType": "annotation", "classification": {"name": name}} if name else {}
    return {"type": "Feature", "geometry": json.loads(shapely.to_geojson(area)), "properties": properties} | more


def write(path, *features, **members):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features} | members))
    return path


def regions(folder, slide, *features):
    """Writes the results of a segmented slide."""
    write_result(folder, slide, WIDTH, HEIGHT, np.zeros((HEIGHT, WIDTH), np.uint8))
    return write(folder / "regions.geojson", *features, bcss_jax={"um_per_pixel_of_labels": 0.5})


def served(slide, **settings):
    return ServedAnnotator(slide, mpp=0.5, **settings)


def test_regions_of_a_model_are_accepted_corrected_or_deleted(slide, tmp_path):
    boxes = [shapely.box(x, 50, x + 60, 110) for x in (20, 120, 220, 320)]
    regions(tmp_path / "out/case", slide, *(feature(box, "Stroma") for box in boxes))
    with served(slide, start_from=tmp_path / "out/case") as found:
        assert any("4 of 4 regions are left to accept" in line for line in found.lines)
        shown = sorted(found.state()["changed"], key=lambda each: each["polygons"])
        assert [each["accepted"] for each in shown] == [False] * 4 and not (tmp_path / "case.geojson").exists()
        targets = [{"id": each["id"], "revision": found.state()["revision"]} for each in shown]
        found.edit("accept", {"targets": targets[:1]})
        found.edit("delete", {"targets": targets[1:2]})
        found.edit("erase", {"points": [[220, 80]], "radius": 20, "of": None})
        assert sorted(round(shapely.from_geojson(json.dumps(each["geometry"])).area) for each in found.features) == [
            pytest.approx(3600 - np.pi * 200, abs=10),
            3600,
        ]
        assert {each["properties"]["metadata"]["source"] for each in found.features} == {"model"}
    with served(slide, start_from=tmp_path / "out/case") as again:
        assert any("1 of 4 regions are left" in line for line in again.lines)
        assert sorted(each["accepted"] for each in again.state()["changed"]) == [False, True, True]
    with served(slide, start_from=tmp_path / "out/case/regions.geojson", output=tmp_path / "other.geojson") as file:
        assert any("4 of 4 regions are left" in line for line in file.lines)


def test_a_file_of_qupath_is_not_replaced_unless_it_is_named_and_then_kept(slide, tmp_path):
    path = write(
        tmp_path / "case.geojson", feature(shapely.box(20, 50, 80, 110)), feature(shapely.box(0, 0, 9, 9), "Odd")
    )
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="go on from them with --start-from="):
        served(slide).__enter__()
    assert path.read_bytes() == before
    with served(slide, start_from=path) as found:
        assert any("kept as" in line and "case.geojson.kept-1" in line for line in found.lines)
        assert any("does not know 'Odd'" in line for line in found.lines)
        assert len(found.features) == 2
    assert (tmp_path / "case.geojson.kept-1").read_bytes() == before
    with served(slide) as again:
        assert any("goes on with 2 annotations" in line for line in again.lines)
    with pytest.raises(ConfigError, match="holds 2 annotations already"):
        served(slide, start_from=write(tmp_path / "b.geojson", feature(shapely.box(1, 1, 50, 50)))).__enter__()
    with served(slide, start_from=tmp_path / "b.geojson", output=tmp_path / "c.geojson") as other:
        assert len(other.state()["changed"]) == 1 and (tmp_path / "b.geojson").exists()


def test_a_folder_of_another_slide_or_without_regions_is_refused(slide, tmp_path):
    other = slide_of_discs(tmp_path / "other.png", WIDTH, HEIGHT, DISCS[:1])
    regions(tmp_path / "out/other", other, feature(shapely.box(20, 50, 80, 110)))
    with pytest.raises(DataError, match="expected the results of case.png, found those of other.png"):
        served(slide, start_from=tmp_path / "out/other").__enter__()
    with pytest.raises(DataError, match="regions.geojson"):
        served(slide, start_from=tmp_path / "out").__enter__()
    with pytest.raises(DataError, match="outside"):
        far = write(tmp_path / "far.geojson", feature(shapely.box(2000, 50, 2080, 110)))
        served(slide, start_from=far).__enter__()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "sam.safetensors"
    state = foundation_case("sam_tiny")[1]
    save_file({name: np.ascontiguousarray(array, np.float32) for name, array in state.items()}, path)
    return path


@pytest.mark.parametrize(
    "change,code,said",
    [
        (["--mpp="], 2, "--mpp"),
        ([], 3, "found no um per pixel"),
        (["--mpp=0.5", "--labels=no_such.toml"], 2, "there is no such file"),
        (["--mpp=0.5", "--model=no_such.pth"], 3, "found no such file"),
        (["--mpp=0.5", "--model=case.png"], 2, "case.png"),
        (["--mpp=0.5", "--model=other.safetensors"], 3, "other.safetensors"),
        (["--mpp=0.5", "--output=no_such_folder/a.geojson"], 2, "in a folder that exists"),
        (["--mpp=0.5", "--output=a.png"], 2, "ends in .geojson"),
        (["--mpp=0.5", "--output=/proc/a.geojson"], 5, "cannot be written"),
        (["--mpp=0.5", "--start-from=no_such"], 3, "found nothing there"),
        (["--mpp=0.5", "--start-from=case.png"], 3, "found another file"),
        (["--mpp=0.5", "--port=99999"], 2, "port"),
    ],
)
def test_what_cannot_work_is_one_line(slide, model, change, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file({"a.weight": np.zeros((3, 3), np.float32)}, tmp_path / "other.safetensors")
    before = sorted(path.name for path in tmp_path.iterdir())
    try:
        found = annotate.main(["case.png", "--model=sam.safetensors", *change])
    except SystemExit as ended:
        found = ended.code
    error = capsys.readouterr().err
    assert found == code and said in error, error
    assert error.strip().count("\n") == 0 and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == before


def test_a_missing_slide_is_one_line(model, tmp_path, capsys):
    assert annotate.main([str(tmp_path / "no.svs"), f"--model={model}"]) == 3
    assert "no.svs" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_serves_a_network_and_ends_with_ctrl_c(slide, model, tmp_path):
    Image.open(slide).save(slide, dpi=(50_800, 50_800))  # 0.5 um per pixel
    command = [sys.executable, "-m", "bcss_jax.annotate", str(slide), f"--model={model}", "--port=0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    port, token = re.search(r"open http://127.0.0.1:(\d+)/#token=(\S+) ", line).groups()
    headers = {"content-type": "application/json", "x-annotate-token": token}

    def post(name, values):
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=120)
        connection.request("POST", f"/{name}", json.dumps(values), headers)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return json.loads(content)

    prompt = {"points": [{"at": [201, 203], "inside": True}], "box": None, "um_per_pixel": 0.5, "previous": None}
    while (answer := post("prompt", prompt))["computing"]:
        pass
    if not answer["proposals"]:  # of drawn weights
        answer = post("prompt", prompt | {"box": [100, 100, 300, 300]})
    edit = {"clicks": 1, "seconds": 1.5, "since": -1, "answer": answer["answer"], "choice": 0}
    added = post("add", edit | {"class_name": "Tumor", "to": None})
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0 and process.stderr.read() == ""
    (feature,) = json.loads((tmp_path / "case.geojson").read_bytes())["features"]
    assert feature["id"] == added["made"]
    assert list((tmp_path / "cache/bcss_jax/embeddings").glob("*/*/*.npz"))
