"""notebooks/quickstart.ipynb: committed without outputs, and runs as a reader runs it, with a small network."""

import base64
import io
import os

import numpy as np
import pytest
from helpers.paths import ROOT
from PIL import Image

nbformat = pytest.importorskip("nbformat", reason="needs pip install -e '.[test]'")
PATH = ROOT / "notebooks" / "quickstart.ipynb"
SMALL = {"epochs": 1, "model.width": 4, "model.depth": 1}


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(PATH, as_version=4)


def test_the_notebook_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            assert len(cell.source.splitlines()) <= 20, "logic belongs into bcss_jax/notebook"


def texts(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def pictures(cell):
    """The pictures that a cell shows, on their own or within HTML."""
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        encoded = [data["image/png"]] if "image/png" in data else []
        encoded += [part.partition('"')[0] for part in data.get("text/html", "").split("data:image/png;base64,")[1:]]
        found += [Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB") for each in encoded]
    return found


@pytest.mark.slow
def test_the_notebook_runs_and_shows_its_pictures(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs pip install -e '.[test]'")
    pytest.importorskip("ipykernel", reason="needs pip install -e '.[test]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # of the prepared data
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # one device, as on a laptop
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = f"changes = {SMALL}"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    cells = {name: cell for cell in notebook.cells if cell.cell_type == "code" for name in [cell.source.split("\n")[0]]}
    shown = {name: pictures(cell) for name, cell in cells.items()}
    (curves,), (samples,) = shown["run.curves()"], shown["run.samples()"]
    assert curves.size == Image.open(tmp_path / "runs" / "sample" / "curves.png").size
    assert samples.height > samples.width
    evaluation = cells['report = bcss_jax.evaluate(run.folder, output=host.output / "sample_evaluation")']
    assert len(pictures(evaluation)) == 3 and "<th>95 % interval</th>" in str(evaluation.outputs)
    slide = cells['slide, truth = notebook.write_sample_slide(host.output / "sample_slide")']
    (overlay,) = pictures(slide)
    assert overlay.width > 600 and "<th>Dice</th>" in str(slide.outputs)
    for picture in [curves, samples, overlay, *pictures(evaluation)]:
        assert np.asarray(picture).std() > 10, "an empty picture"
    training = cells['config = bcss_jax.load_config("unet", changes)']
    assert sum("ended after" in str(output) for output in training.outputs) == 1, "one display that changes in place"
    assert texts(training).count("\n") < 30
    assert "nothing to train" in texts(cells["found = notebook.find_bcss(host.inputs)"])
