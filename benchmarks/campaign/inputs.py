"""Draws the sound input of the campaign: tiles, a slide with truth and tissue, and a run trained on the tiles."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import tifffile
import trials
from PIL import Image
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).resolve().parents[2]
PATIENTS = {"train": ("TCGA-A2-A0D2", "TCGA-BH-A0B1"), "val": ("TCGA-OL-A5D6",)}
SIDE = 64  # pixels of a tile
TILES_EACH = 4  # of each patient
SLIDE = (320, 256)  # pixels: width, height
COLORS = {1: ((176, 118, 190), (104, 58, 146)), 2: ((228, 160, 196), (150, 90, 160))}  # code -> plasma, nuclei
TRAIN = (
    "--config=configs/unet.py:kaggle224,few", "--config.data.dir={work}/tiles", "--config.data.prepared_dir={work}/tmp",
    "--workdir={out}", "--config.model.width=4", "--config.model.depth=1", "--config.batch_size=2", "--config.epochs=2",
    "--config.eval_batch_size=2", "--config.optimizer.learning_rate=0.01",
)  # fmt: skip


def tissue(width: int, height: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns an H&E-like image, uint8 [height, width, 3], and its codes (1 tumor, 2 stroma), uint8 [height, width]."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=(height, width)), 12)
    codes = np.where(field > 0, 1, 2).astype(np.uint8)
    nuclei = gaussian_filter(rng.normal(size=(height, width)), 2) > 0.08
    pixels = np.array([(0, 0, 0)] * 2 + [c for code in (1, 2) for c in COLORS[code]])[2 * codes + nuclei]
    return np.clip(pixels + rng.normal(0, 6, (height, width, 1)), 0, 255).astype(np.uint8), codes


def tile_name(patient: str, number: int) -> str:
    """Returns the name of a tile, as in the data set, without suffix."""
    return f"{patient}-DX1_xmin100_ymin200_MPP-0_{SIDE * number}_0_size{SIDE}"


def tiles(folder: Path) -> Path:
    """Writes a data set in the layout kaggle224."""
    for split, patients in PATIENTS.items():
        for patient in patients:
            for number in range(TILES_EACH):
                name = f"{tile_name(patient, number)}.png"
                image, codes = tissue(SIDE, SIDE, seed=sum(map(ord, patient)) + number)
                for part, pixels in ((split, image), (f"{split}_mask", codes)):
                    (folder / part).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(folder / part / name)
    return folder


def slide(path: Path, *, pixels: np.ndarray | None = None, mpp: float | None = 0.25, **options) -> Path:
    """Writes a slide as a tiled TIFF with its resolution."""
    density = {} if mpp is None else {"resolution": (10_000 / mpp,) * 2, "resolutionunit": "CENTIMETER"}
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate", "metadata": None} | options
    tifffile.imwrite(path, tissue(*SLIDE)[0] if pixels is None else pixels, **density, **options)
    return path


def truth(path: Path) -> Path:
    """Writes the codes of the slide as PNG."""
    Image.fromarray(tissue(*SLIDE)[1]).save(path)
    return path


def square(x: float, y: float, side: float) -> list[list[float]]:
    """Returns a closed ring."""
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def regions(path: Path, *rings: list) -> Path:
    """Writes polygons, each given as a list of rings, as GeoJSON; a square without any."""
    polygons = rings or ([square(40, 40, 160)],)
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": polygon}, "properties": {}}
        for polygon in polygons
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def slide_list(path: Path, *rows: dict) -> Path:
    """Writes a list of slides."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def raw_folder(folder: Path, cases: int = 6) -> Path:
    """Writes a raw data folder of nnU-Net."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(cases):
        image, codes = tissue(SIDE, SIDE, seed=100 + number)
        Image.fromarray(image).save(folder / "imagesTr" / f"case_{number:02d}_0000.png")
        Image.fromarray(codes).save(folder / "labelsTr" / f"case_{number:02d}.png")
    dataset = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "tumor": 1, "stroma": 2},
        "numTraining": cases,
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


class Inputs:
    """The sound input, written once; trials copy what they damage.

    Attributes:
      folder: holds `tiles`, `slide.tif`, `truth.png`, `tissue.geojson`, `raw`, its plan `plans.json`, the trained run
        `run`, and `model.bcss`, its export.
    """

    def __init__(self, folder: Path):
        """Draws everything and trains the run, unless the folder has it."""
        self.folder = folder
        if (folder / "done").exists():
            return
        tiles(folder / "tiles")
        slide(folder / "slide.tif")
        truth(folder / "truth.png")
        regions(folder / "tissue.geojson")
        raw_folder(folder / "raw")
        longer = tuple(a.replace("epochs=2", "epochs=8") for a in TRAIN)  # tells the two classes apart
        trained = trials.Trial(
            "input", "train", "train", longer, (0,), prepare=self.copier("tiles"), check=self._keep, limit=600
        )
        plan = ("plan", "--raw={work}/raw", "--out={work}/out/plans.json", "--prepared_dir={work}/tmp")
        planned = trials.Trial(
            "input", "plan", "nnunet", plan, (0,), prepare=self._for_plan, check=self._keep_plan, limit=600
        )
        exported = trials.Trial(
            "input", "export", "export", (f"--checkpoint={self.run}", "--output={out}"), (0,), check=self._keep_model,
            limit=600,
        )  # fmt: skip
        for trial in (trained, planned, exported):
            outcome = trials.run(trial)
            if outcome.faults:
                raise RuntimeError(f"no input to try, {trial.name} fails: {outcome.line} {outcome.faults}")
        (folder / "done").touch()

    def _keep(self, work: Path) -> str:
        shutil.copytree(work / "out", self.run)
        return ""

    def _for_plan(self, work: Path) -> None:
        self.copier("raw")(work)
        (work / "out").mkdir()

    def _keep_plan(self, work: Path) -> str:
        shutil.copy(work / "out/plans.json", self.folder)
        return ""

    def _keep_model(self, work: Path) -> str:
        shutil.copy(work / "out", self.folder / "model.bcss")
        return ""

    @property
    def run(self) -> Path:
        """The trained run; not to be changed."""
        return self.folder / "run"

    def copier(self, *names: str):
        """Returns a function that copies some of the input into a trial's folder."""

        def copy(work: Path) -> None:
            for name in names:
                source = self.folder / name
                if source.is_dir():
                    shutil.copytree(source, work / name, symlinks=True)
                else:
                    shutil.copy2(source, work / name)

        return copy
