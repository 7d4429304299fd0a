"""Where the repository, its benchmarks, and the folder of reference values and real data are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
DATA = SHARED / "data"  # real tiles, masks and slides; tests skip where it is missing
