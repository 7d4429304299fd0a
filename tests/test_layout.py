"""The package keeps its layout: small folders, imports that never run upward, short functions."""

import ast

import pytest
from helpers.paths import ROOT

PACKAGE = ROOT / "bcss_jax"
# From the lowest layer to the highest. A module imports its own layer and those below it.
LAYERS = (
    ("errors", "losses", "metrics", "common.regular_file"),
    ("labels",),
    ("common",),
    ("models.arguments", "models.blocks", "models.encoders", "models.image_normalization", "models.weights"),
    ("models",),
    ("data.decoding", "data.resolution", "data.image_files", "data.image_folder", "data.mask_codes"),
    ("slides.grid", "slides.windows", "slides.classes"),
    ("slides.reading",),
    ("slides.store",),
    ("slides.regions",),
    ("slides.annotations", "slides.tissue.tissue_by_color"),
    ("data",),
    ("config", "config_file"),
    ("training",),
    ("nnunet",),
    ("inference",),
    ("prompting",),
    ("tuning",),
    ("accelerators",),
    ("evaluation.statistics",),
    ("evaluation.reporting",),
    ("evaluation",),
    ("slides.slide_summary",),
    ("slides.tissue",),
    ("slides.stitching",),
    ("slides.outputs",),
    ("slides.scoring",),
    ("slides.batch",),
    ("slides.features", "slides.prompts", "slides.scribbles"),
    ("pretraining",),
    ("viewer",),
    ("annotator",),
    ("api",),
    ("notebook",),
    ("commands", "models.__main__"),
    ("cli",),
    (
        "main",
        "evaluate",
        "segment",
        "view",
        "annotate",
        "export",
        "compile_for",
        "doctor",
        "embed",
        "import_model",
        "pretrain",
        "prompt",
        "scribble",
        "serve_sam",
    ),  # fmt: skip
)
MAX_LINES = 80
LONG = "# Long: "  # in the line above a function (and its decorators), followed by the reason


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__").removesuffix("__init__"), path


def layer_of(module):
    """Index of the layer with the longest name that holds the module; None for the package itself."""
    fits = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    return max(fits)[1] if fits else None


def imported_by(path):
    names = {module for module, _ in modules()}
    tree = ast.parse(path.read_text())
    if path == PACKAGE / "__init__.py":  # names for type checkers, which are imported when they are used
        tree.body = [node for node in tree.body if ast.unparse(node).partition("\n")[0] != "if TYPE_CHECKING:"]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bcss_jax":
            package = node.module.removeprefix("bcss_jax").removeprefix(".")
            for alias in node.names:
                name = f"{package}.{alias.name}".removeprefix(".")
                yield node.lineno, name if name in names else package


def test_every_module_has_a_layer():
    assert [module for module, _ in modules() if module not in ("", "slides") and layer_of(module) is None] == []


def test_no_import_runs_upward():
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in modules()
        for line, name in imported_by(path)
        # The commands of a folder (python -m bcss_jax.data) may import what they start.
        if name not in ("", "slides") and layer_of(module) is not None and layer_of(name) > layer_of(module)
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: {name for _, name in imported_by(path) if name != module} for module, path in modules()}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for name in sorted(graph.get(module, ())):
            visit(name)
        path.pop()
        done.add(module)

    for module in graph:
        visit(module)
    assert len(done) > 150


@pytest.mark.parametrize("folder", sorted({path.parent for _, path in modules()}), ids=lambda path: path.name)
def test_folders_are_small(folder):
    most = {PACKAGE / "nnunet": 40, PACKAGE: 24, PACKAGE / "commands": 24}.get(folder, 16)  # a file for each command
    assert len(list(folder.glob("*.py"))) <= most


def test_functions_are_short_or_say_why_not():
    long = []
    for _, path in modules():
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            reason = lines[first - 2].strip() if first > 1 else ""
            if node.end_lineno - node.lineno + 1 > MAX_LINES and not reason.startswith(LONG):
                long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert long == []
