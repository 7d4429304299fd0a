"""Result folders: nnU-Net's folders predict here, ours predict in nnU-Net, ensembles of folds, errors."""

import functools
import importlib.util
import json
import pickle

import numpy as np
import pytest
from helpers import nnunet_small as small

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.models.weights.pretrained import to_torch_state
from bcss_jax.nnunet import predict, result_folder
from bcss_jax.nnunet.network import network_from_plan
from bcss_jax.nnunet.preprocess import preprocess

torch = pytest.importorskip("torch", reason="PyTorch, which reads and writes the checkpoints, is not installed")


class Canary:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@functools.cache
def state_of(fold):
    return to_torch_state(network_from_plan(small.PLAN, 3, seed=fold))


def states(folds=(0,)):
    return {fold: state_of(fold) for fold in folds}


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of ours with a random network."""
    result_folder.write_result_folder(tmp_path / "results", small.PLAN, small.DATASET, states())
    return tmp_path / "results"


def change(folder, **entries):
    """Replaces entries in the checkpoint of fold 0."""
    path = folder / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=False) | entries, path)


def labels(folder, image):
    """Returns our labels of an image, predicted with the settings in the folder."""
    results = result_folder.read_result_folder(folder)
    case = preprocess(image, None, results.plan, results.dataset)
    models = [results.model(fold) for fold in results.folds]
    predictor = predict.make_predictor(models, results.patch_size, mirror=results.mirror_axes)
    return predict.predicted_labels(predictor(case.data), case.properties)


def test_labels_are_nnunets_there_and_back(tmp_path):
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed")
    folds = (0, 1)
    theirs, ours = small.nnunets_folder(tmp_path / "theirs", folds), tmp_path / "ours"
    read = result_folder.read_result_folder(theirs)
    for fold in folds:  # through our models, and one after another, as separate jobs write them
        state = {fold: to_torch_state(read.model(fold))}
        result_folder.write_result_folder(ours, read.plan, read.dataset, state, mirror_axes=read.mirror_axes)
    image = np.zeros((165, 180, 3), np.uint8)  # with a black border, which is cropped and put back
    image[7:157, 4:174] = small.case()[0]
    predicted = labels(ours, image)
    for folder in (theirs, ours):
        reference = small.reference_labels(folder, image)
        assert predicted.shape == reference.shape == (165, 180)
        assert (predicted == reference).mean() >= 0.9999
    assert (predicted[7:157, 4:174] == small.case()[1]).mean() > 0.85  # it has learned something
    assert not predicted[:7].any() and not predicted[:, 174:].any()


def test_checkpoints_of_nnunets_trainer_are_read_weights_only(tmp_path):
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed")
    read = result_folder.read_result_folder(small.nnunets_folder(tmp_path, ("all",)))
    assert read.plan == small.PLAN and read.dataset == small.DATASET and read.num_classes == 3
    assert (read.trainer, read.mirror_axes) == ("nnUNetTrainer", (0, 1))
    expected = small.trained_network().state_dict()
    assert read.folds["all"].keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(read.folds["all"][name], tensor.numpy())


def test_written_and_read_again(tmp_path):
    folder, written = tmp_path / "a" / "b", states((0, 3))
    result_folder.write_result_folder(folder, small.PLAN, small.DATASET, written, mirror_axes=())
    read = result_folder.read_result_folder(folder)
    assert list(read.folds) == [0, 3] and read.mirror_axes == () and read.patch_size == (64, 64)
    for fold, state in written.items():
        assert read.folds[fold].keys() == state.keys()
        for name, array in state.items():
            np.testing.assert_array_equal(read.folds[fold][name], array)
        for name, array in to_torch_state(read.model(fold)).items():
            np.testing.assert_array_equal(array, state[name])
    assert list(result_folder.read_result_folder(folder, folds=[3]).folds) == [3]
    files = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    )
    assert files == ["dataset.json", "fold_0/checkpoint_final.pth", "fold_3/checkpoint_final.pth", "plans.json"]
    once = sum(array.nbytes for array in {id(v): np.asarray(v[...]) for v, _ in
                                          read.model(0).torch_entries().values()}.values())  # fmt: skip
    assert (folder / "fold_0" / "checkpoint_final.pth").stat().st_size < 1.5 * once + 100_000


def test_another_checkpoint_and_folds_that_are_not_numbered(tmp_path):
    write = dict(plan=small.PLAN, dataset=small.DATASET)
    result_folder.write_result_folder(tmp_path, **write, folds={"all": states()[0]})
    assert list(result_folder.read_result_folder(tmp_path).folds) == ["all"]
    result_folder.write_result_folder(tmp_path, **write, folds=states((1,)), checkpoint="checkpoint_best.pth")
    assert list(result_folder.read_result_folder(tmp_path).folds) == ["all"]
    assert list(result_folder.read_result_folder(tmp_path, checkpoint="checkpoint_best.pth").folds) == [1]


def test_a_folder_of_another_plan_does_not_change(folder):
    before = (folder / "plans.json").read_bytes()
    with pytest.raises(DataError, match="plans.json: the existing file differs"):
        result_folder.write_result_folder(folder, small.PLAN | {"plans_name": "other"}, small.DATASET, states((1,)))
    with pytest.raises(DataError, match="dataset.json: the existing file differs"):
        result_folder.write_result_folder(folder, small.PLAN, small.DATASET | {"numTraining": 2}, states((1,)))
    assert (folder / "plans.json").read_bytes() == before and not (folder / "fold_1").exists()


def test_a_failed_write_keeps_the_old_checkpoint(folder, monkeypatch):
    before = (folder / "fold_0" / "checkpoint_final.pth").read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(Exception, match="cannot be written .No space"):
        result_folder.write_result_folder(folder, small.PLAN, small.DATASET, states())
    assert (folder / "fold_0" / "checkpoint_final.pth").read_bytes() == before


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_malicious_checkpoint_is_refused_without_being_run(folder, tmp_path, save):
    path, canary = folder / "fold_0" / "checkpoint_final.pth", tmp_path / "canary"
    save(torch.load(path, weights_only=False) | {"logging": Canary(canary)}, path)
    with pytest.raises(DataError, match="weights-only") as error:
        result_folder.read_result_folder(folder)
    assert "fold_0" in str(error.value) and "\n" not in str(error.value) and not canary.exists()


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_missing_and_damaged_json_is_refused(folder, name):
    for content in ("{", "[]", None):
        (folder / name).unlink() if content is None else (folder / name).write_text(content)
        with pytest.raises(DataError, match=f"{folder / name}: .*(JSON|missing|[Nn]o such file)") as error:
            result_folder.read_result_folder(folder)
        assert "\n" not in str(error.value)


def test_missing_folders_folds_and_checkpoints_are_refused(folder):
    with pytest.raises(DataError, match="there is no such folder"):
        result_folder.read_result_folder(folder / "other")
    with pytest.raises(DataError, match="missing; checkpoints of this folder: fold_0/checkpoint_final.pth"):
        result_folder.read_result_folder(folder, folds=[2])
    with pytest.raises(DataError, match="no fold has a checkpoint_best.pth; found fold_0/checkpoint_final.pth"):
        result_folder.read_result_folder(folder, checkpoint="checkpoint_best.pth")
    with pytest.raises(DataError, match="no folds were given"):
        result_folder.read_result_folder(folder, folds=[])


@pytest.mark.parametrize(
    "entries, said",
    [
        ({"trainer_name": "nnUNetTrainerBN"}, "trained by nnUNetTrainerBN, which is not supported"),
        ({"trainer_name": "nnUNet_Primus_M_Trainer"}, "trained by nnUNet_Primus_M_Trainer, which"),
        ({"trainer_name": None}, "expected a checkpoint of nnU-Net v2"),
        ({"init_args": {"configuration": "3d_fullres"}}, "trained in configuration '3d_fullres'"),
        ({"inference_allowed_mirroring_axes": (0, 2)}, "mirrored axes"),
    ],
)
def test_unsupported_trainings_are_refused(folder, entries, said):
    change(folder, **entries)
    with pytest.raises(DataError, match=said) as error:
        result_folder.read_result_folder(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("trainer", ["nnUNetTrainer_5epochs", "nnUNetTrainerNoDeepSupervision", "nnUNetTrainerDA5"])
def test_trainers_of_the_same_network(folder, trainer):
    change(folder, trainer_name=trainer, inference_allowed_mirroring_axes=None)
    read = result_folder.read_result_folder(folder)
    assert read.trainer == trainer and read.mirror_axes == ()


@pytest.mark.parametrize(
    "name, part, value, said",
    [
        ("dataset.json", "channel_names", {"0": "R", "1": "G", "2": "B", "3": "IR"}, "three"),
        ("dataset.json", "labels", {"background": 0, "tumor": [1, 2]}, "region"),
        ("dataset.json", "labels", {"background": 0, "ignore": 1, "tumor": 2}, "ignore"),
        ("plans.json", "configurations", {}, "no configuration 2d"),
        ("plans.json", "configurations", ["2d"], "no configuration 2d"),
    ],
)
def test_unsupported_data_sets_and_plans_are_refused(folder, name, part, value, said):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | {part: value}))
    with pytest.raises(DataError, match=said) as error:
        result_folder.read_result_folder(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_an_unsupported_network_is_refused(folder):
    text = (folder / "plans.json").read_text()
    (folder / "plans.json").write_text(text.replace("PlainConvUNet", "UMambaBot"))
    with pytest.raises(DataError, match="plans.json: .*'UMambaBot' is not supported"):
        result_folder.read_result_folder(folder)


def test_weights_that_do_not_fit_the_plan_are_refused(folder):
    plan = (folder / "plans.json").read_text().replace("32\n", "24\n")
    (folder / "plans.json").write_text(plan)
    with pytest.raises(DataError, match="fold_0: trained by nnUNetTrainer: the weights do not fit") as error:
        result_folder.read_result_folder(folder).model(0)
    assert "\n" not in str(error.value)


def test_folds_of_two_trainings_are_refused(folder):
    result_folder.write_result_folder(folder, small.PLAN, small.DATASET, states((1,)), mirror_axes=(0,))
    with pytest.raises(DataError, match="fold 1 .* does not belong to fold 0"):
        result_folder.read_result_folder(folder)


def test_without_pytorch_nothing_is_written_or_read(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install 'torch>=2.10'"):
        result_folder.write_result_folder(folder / "new", small.PLAN, small.DATASET, states())
    assert not (folder / "new").exists()
    with pytest.raises(ConfigError, match="needs PyTorch"):
        result_folder.read_result_folder(folder)
