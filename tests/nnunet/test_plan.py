"""Plans: comparison with nnU-Net's files and planners, plan files, errors."""

import copy
import importlib
import json

import numpy as np
import pytest

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.nnunet import make_plan, network, plan_file, topology
from bcss_jax.nnunet.plan import PRESETS, reasons

CASES = ("rgb224_n40", "rgb224_n400", "rgb512_n20", "rgb512_n300", "rgbmixed1500x2000_n12")
RGB = {"0": "R", "1": "G", "2": "B"}
THREE = {"background": 0, "tumor": 1, "stroma": 2}


def fingerprint_of(shapes, spacings=None, kept=1.0, channels=3):
    statistics = {"max": 255.0, "mean": 120.5, "median": 118.0, "min": 0.0, "std": 40.25}
    statistics |= {"percentile_00_5": 3.0, "percentile_99_5": 250.0}
    return {
        "foreground_intensity_properties_per_channel": {str(c): dict(statistics) for c in range(channels)},
        "median_relative_size_after_cropping": kept,
        "shapes_after_crop": [[1, *shape] for shape in shapes],
        "spacings": [list(s) for s in (spacings or [(999, 1, 1)] * len(shapes))],
    }


def dataset_of(number, channels=RGB, labels=THREE):
    return {"channel_names": channels, "labels": labels, "numTraining": number, "file_ending": ".png"}


def stored(shared, case, name):
    return json.loads((shared / "nnunet_plans" / case / f"{name}.json").read_text())


def random_case(seed):
    """Returns a different kind of data set for each seed."""
    random = np.random.RandomState(seed)
    count = int(random.choice([1, 3, 7, 12, 50, 400]))
    low, high = [(8, 40), (60, 300), (200, 700), (500, 3000)][seed % 4]
    base = random.randint(low, high, 2)
    if seed % 3 == 0:
        base[seed % 2] = random.randint(4, 60)  # elongated
        base[1 - seed % 2] = max(base[1 - seed % 2], 40)
    jitter = random.randint(0, 9, (count, 2)) * (seed % 5 != 0)
    names = random.choice(["R", "rgb_to_0_1", "CT", "noNorm", "zscore", "rescale_to_0_1", "Hematoxylin"], size=5)
    channels = {str(i): str(name) for i, name in enumerate(names[: (3, 1, 5)[seed % 3]])}
    labels = {"background": 0} | {f"class {i}": i for i in range(1, int(random.randint(2, 30)))}
    if seed % 2:
        labels["ignore"] = len(labels)
    if seed % 7 == 3:
        labels["whole"] = [1, 2]
    spacings = [(999, 1, 1)] * count
    if seed % 6 == 4:
        spacings = [(999, 1, 2.5)] * count
    if seed % 6 == 5:
        spacings = [(999, *random.uniform(0.2, 0.9, 2).round(2)) for _ in range(count)]
    shapes = (base + jitter).tolist()
    kept = [1.0, 0.7499, 0.75][seed % 3]
    return fingerprint_of(shapes, spacings, kept, len(channels)), dataset_of(count, channels, labels)


@pytest.fixture
def planners(tmp_path, monkeypatch):
    """Runs a planner of nnU-Net for a preset; returns its plan and its memory estimates."""
    reason = "nnU-Net is not installed"
    pytest.importorskip("nnunetv2", reason=reason)
    torch = pytest.importorskip("torch", reason=reason)
    base = "nnunetv2.experiment_planning.experiment_planners"
    plain = importlib.import_module(f"{base}.default_experiment_planner")
    residual = importlib.import_module(f"{base}.residual_unets.residual_encoder_unet_planners")
    raw, preprocessed = tmp_path / "raw" / "Dataset007_Test", tmp_path / "preprocessed" / "Dataset007_Test"
    raw.mkdir(parents=True)
    preprocessed.mkdir(parents=True)
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))

    def run(fingerprint, dataset, preset):
        files = {"dataset": {"one": {"images": ["one.png"], "label": "one.png"}}}
        reader = {"overwrite_image_reader_writer": "NaturalImage2DIO"}  # else it would open an image
        (raw / "dataset.json").write_text(json.dumps(dataset | files | reader))
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        name = PRESETS[preset].planner
        planner = getattr(residual if hasattr(residual, name) else plain, name)("Dataset007_Test")
        estimates, estimate = [], planner.static_estimate_VRAM_usage
        planner.static_estimate_VRAM_usage = lambda *args: estimates.append(int(estimate(*args))) or estimates[-1]
        with torch.device("meta"):  # networks without their weights
            planner.plan_experiment()
        path = preprocessed / f"{PRESETS[preset].plans_name}.json"
        text = path.read_text()
        path.unlink()
        return json.loads(text), estimates

    return run


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", CASES)
def test_plans_and_memory_estimates_equal_nnunets_files(shared, case, preset):
    fingerprint, dataset, about = (stored(shared, case, name) for name in ("dataset_fingerprint", "dataset", "case"))
    before = copy.deepcopy((fingerprint, dataset))
    expected = stored(shared, case, PRESETS[preset].plans_name)
    name = f"Dataset{about['id']:03d}_{about['name']}"
    made = make_plan(fingerprint, dataset, preset, dataset_name=name)
    assert made == expected
    assert json.dumps(made) == json.dumps(expected)  # the order of the entries and integers as such, too
    assert make_plan(fingerprint, dataset, PRESETS[preset].plans_name, dataset_name=name) == expected
    steps = [
        (list(network.patch_size), [list(stride) for stride in network.strides], estimate)
        for network, estimate in reasons(fingerprint, dataset, preset).steps
    ]
    wanted = stored(shared, case, "vram_estimates")[PRESETS[preset].planner]
    assert steps == [(step["patch_size"], step["strides"], step["estimate"]) for step in wanted]
    assert (fingerprint, dataset) == before


@pytest.mark.parametrize("seed", range(24))
def test_plans_of_random_data_sets_equal_nnunet(planners, seed):
    fingerprint, dataset = random_case(seed)
    preset = list(PRESETS)[seed % 5]
    expected, estimates = planners(fingerprint, dataset, preset)
    assert make_plan(fingerprint, dataset, preset, dataset_name="Dataset007_Test") == expected
    assert [step.estimate for step in reasons(fingerprint, dataset, preset).steps] == estimates


def test_transposed_images_and_old_names_equal_nnunet(planners):
    spacings = [(1, 999, 1)] * 5
    fingerprint = fingerprint_of([(64, 100)] * 5, spacings) | {"shapes_after_crop": [[64, 1, 100]] * 5}
    dataset = dataset_of(5)
    dataset["modality"] = dataset.pop("channel_names")
    expected, _ = planners(fingerprint, dataset, "nnUNetPlans")
    assert expected["transpose_forward"] == [1, 0, 2]
    assert make_plan(fingerprint, dataset, dataset_name="Dataset007_Test") == expected


@pytest.mark.parametrize(
    "shape, strides",
    [
        ((8, 8), [(1, 1), (2, 2)]),
        ((12, 1), [(1, 1), (2, 1)]),
        ((7, 12), [(1, 1), (1, 2)]),
        ((97, 613), [(1, 1), *[(2, 2)] * 4, *[(1, 2)] * 2]),
    ],
)
def test_smallest_images_with_a_network(planners, shape, strides):
    fingerprint, dataset = fingerprint_of([shape] * 50), dataset_of(50)
    made = make_plan(fingerprint, dataset, dataset_name="Dataset007_Test")
    assert made["configurations"]["2d"]["architecture"]["arch_kwargs"]["strides"] == [list(s) for s in strides]
    assert made == planners(fingerprint, dataset, "nnUNetPlans")[0]


@pytest.mark.parametrize("shape", [(7, 7), (11, 5), (8, 7), (1, 1)])
def test_images_that_are_too_small_are_refused(shape):
    with pytest.raises(DataError, match=f"{shape[0]} x {shape[1]} pixels.*both axes must have 8.*12") as error:
        make_plan(fingerprint_of([shape] * 5), dataset_of(5))
    assert "\n" not in str(error.value)


def test_rule_before_2_3_1_limits_the_patch(shared):
    fingerprint, dataset = (stored(shared, CASES[-1], name) for name in ("dataset_fingerprint", "dataset"))
    old = make_plan(fingerprint, dataset, rule_before_2_3_1=True)["configurations"]["2d"]
    assert old["patch_size"] == [512, 512] and 2 <= old["batch_size"] <= 12
    assert make_plan(fingerprint, dataset)["configurations"]["2d"]["patch_size"] == [1024, 1280]
    residual = [make_plan(fingerprint, dataset, "ResEncL", rule_before_2_3_1=rule) for rule in (True, False)]
    assert residual[0] == residual[1]


@pytest.mark.parametrize(
    "change, part",
    [
        ({"labels": ...}, "lacks labels"),
        ({"channel_names": {}}, "lacks channel_names"),
        ({"file_ending": ".jpg"}, "file_ending is '.jpg'"),
        ({"shapes_after_crop": [[1, 64, 64]]}, "1 shapes_after_crop and 2 spacings"),
        ({"shapes_after_crop": [[64, 64]] * 2}, "three numbers"),
        ({"shapes_after_crop": [[30, 64, 64]] * 2, "spacings": [[1, 1, 1]] * 2}, "30 layers"),
        ({"shapes_after_crop": [], "spacings": []}, "at least one case"),
        ({"spacings": ...}, "fingerprint: lacks spacings"),
    ],
)
def test_data_that_cannot_be_planned_for_are_refused(change, part):
    fingerprint, dataset = fingerprint_of([(64, 64)] * 2), dataset_of(2)
    for key, value in change.items():
        target = fingerprint if key in fingerprint else dataset
        target[key] = value
        if value is ...:
            del target[key]
    with pytest.raises(DataError) as error:
        make_plan(fingerprint, dataset)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="no nnU-Net preset 'huge'.*ResEncXL"):
        make_plan(fingerprint_of([(64, 64)]), dataset_of(1), "huge")


def test_memory_counts_every_convolution():
    network_ = topology.make_topology((8, 12), (1, 1))
    assert network_.patch_size == (8, 12) and network_.divisor == (2, 2)
    full, half = 8 * 12, 4 * 6
    assert topology.memory_estimate(network_, False, 3) == (2 + 3) * 32 * full + 2 * 64 * half + 3 * full
    assert topology.memory_estimate(network_, True, 3) == (3 + 2) * 32 * full + 7 * 64 * half + 3 * full


# Files


def small_plan(**changes):
    made = make_plan(fingerprint_of([(64, 96)] * 10), dataset_of(10))
    made["configurations"]["2d"] |= changes
    return made


def test_a_plan_is_written_read_edited_and_gives_a_network(tmp_path):
    made, path = small_plan(), tmp_path / "plan.json"
    plan_file.write_plan(path, made)
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    read = plan_file.read_plan(path)
    assert read == made
    read["configurations"]["2d"] |= {"patch_size": [32, 64], "batch_size": 7}
    plan_file.write_plan(path, read)
    edited = plan_file.read_plan(path)["configurations"]["2d"]
    assert (edited["patch_size"], edited["batch_size"]) == ([32, 64], 7)
    assert network.class_and_arguments(read)[1]["n_stages"] == 5


@pytest.mark.parametrize("case", CASES)
def test_nnunets_plan_files_are_read_and_match_their_data(shared, case):
    fingerprint, dataset = stored(shared, case, "dataset_fingerprint"), stored(shared, case, "dataset")
    for preset in PRESETS.values():
        made = plan_file.read_plan(shared / "nnunet_plans" / case / f"{preset.plans_name}.json")
        plan_file.check_plan(made, dataset, fingerprint)
        assert "*" not in plan_file.plan_table(made, fingerprint, dataset)


@pytest.mark.parametrize(
    "content, part",
    [
        (b"{", "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"\x80\x04\x95\x00", "found a pickle, as nnU-Net v1 wrote"),
        (b"[1]", "holds list"),
        ({"plans_per_stage": {}}, "a plan of nnU-Net v1"),
        ({"plans_name": "x"}, "lacks transpose_forward, configurations, foreground"),
        ({"configurations": {"3d_fullres": {}}}, "no configuration 2d; found: 3d_fullres"),
        ({"configurations": {}}, "no configuration 2d; found: none"),
        ({"2d": {"UNet_class_name": "PlainConvUNet"}}, "before 2.4"),
        ({"2d": {"patch_size": ..., "spacing": ...}}, "configuration 2d lacks patch_size, spacing"),
        (
            {"2d": {"patch_size": [64, 90]}},
            "patch_size 64x90 does not fit the strides: height and width must be multiples",
        ),
        ({"2d": {"patch_size": [16, 16]}}, "larger than 16x16"),
        ({"2d": {"patch_size": [1, 64, 96]}}, "two positive integers"),
        ({"2d": {"batch_size": 0}}, "batch_size is 0"),
        ({"2d": {"preprocessor_name": "Other"}}, "preprocessor 'Other'"),
        ({"2d": {"normalization_schemes": ["ZScoreNormalization", "Wild", "NoNormalization"]}}, "scheme 'Wild'"),
        ({"2d": {"use_mask_for_norm": [True]}}, "3 normalization_schemes and 1 use_mask_for_norm"),
        ({"2d": {"architecture": {"network_class_name": "a.Primus"}}}, "'Primus' is not supported"),
        ({"arch": {"conv_op": "torch.nn.modules.conv.Conv3d"}}, "conv_op is 'Conv3d'"),
        ({"arch": {"strides": [2, 2]}}, "strides are [2, 2]"),
    ],
)  # fmt: skip
def test_files_without_a_usable_plan_are_refused(tmp_path, content, part):
    path = tmp_path / "plan.json"
    if isinstance(content, dict):
        made = small_plan()
        configuration = made["configurations"]["2d"]
        changes = {"2d": configuration, "arch": configuration["architecture"]["arch_kwargs"]}
        for key, change in content.items():
            target = changes.get(key)
            if target is None:
                made = content if key == "plans_name" else made | {key: change}
                continue
            target |= change
            for field in [field for field, value in target.items() if value is ...]:
                del target[field]
        content = json.dumps(made).encode()
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        plan_file.read_plan(path)
    assert str(error.value).startswith(f"{path}: ") and part in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected an nnU-Net plan .*, found no such file"):
        plan_file.read_plan(tmp_path / "plan.json")


def test_plans_of_other_data_are_refused():
    def message(dataset, fingerprint=None):
        with pytest.raises(DataError) as error:
            plan_file.check_plan(small_plan(), dataset, fingerprint)
        assert "\n" not in str(error.value)
        return str(error.value)

    same = fingerprint_of([(64, 96)] * 10)
    plan_file.check_plan(small_plan(batch_size=3, patch_size=[32, 32]), dataset_of(10), same)
    assert "is for 3 channels, the data have 1 (CT)" in message(dataset_of(10, {"0": "CT"}))
    assert "median image has 64x96 pixels, that of these data 64x97" in message(
        dataset_of(10), fingerprint_of([(64, 97)] * 10)
    )
    other = copy.deepcopy(same)
    other["foreground_intensity_properties_per_channel"]["1"]["mean"] += 0.01
    assert "mean of channel 1 over the foreground is 120.5, in these data 120.51" in message(dataset_of(10), other)


def test_the_table_lists_decisions_and_their_reasons(shared):
    fingerprint, dataset = (stored(shared, CASES[1], name) for name in ("dataset_fingerprint", "dataset"))
    made = make_plan(fingerprint, dataset)
    text = plan_file.plan_table(made, fingerprint, dataset)
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "400 cases" in text and "224x224" in lines["patch size"] and "median image 224x224" in lines["patch size"]
    assert "20 " in lines["batch size"] and "5 % of the pixels are 20" in lines["batch size"]
    assert "memory allows 65" in lines["batch size"]
    assert max(map(len, text.splitlines())) < 180
    made["configurations"]["2d"]["batch_size"] = 33
    assert "33 (*, rule: 20)" in plan_file.plan_table(made, fingerprint, dataset)
