"""Puts the config files into the wheel, as bcss_jax/configs; everything else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies configs/ into the package, but not where the package is used from its checkout."""

    def run(self):
        """Builds the package."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "bcss_jax", "configs")
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(Path("configs").glob("*.py")):
                shutil.copy(path, folder)


setup(cmdclass={"build_py": BuildWithConfigs})
