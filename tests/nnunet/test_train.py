import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.nnunet_small import PLAN, CaseInMemory

from bcss_jax import losses, models
from bcss_jax.errors import Preempted
from bcss_jax.nnunet.record import FoldRecord
from bcss_jax.nnunet.steps import Length, make_steps
from bcss_jax.nnunet.train import train_fold
from bcss_jax.training import checkpoint
from bcss_jax.training.epoch import LoopSettings

NAMES = ("background", "tumor", "stroma")
SETTINGS = {
    "name": "nnunet", "n_stages": 3, "features_per_stage": (4, 8, 8), "strides": ((1, 1), (2, 2), (2, 2)),
    "n_conv_per_stage": (1, 1, 1), "n_conv_per_stage_decoder": (1, 1),
}  # fmt: skip


def random_case(seed):
    random = np.random.RandomState(seed)
    labels = np.zeros((70, 90), np.int8)
    labels[5:40, 10:50], labels[30:60, 40:80], labels[:4] = 1, 2, 3
    data = (random.standard_normal((70, 90, 3)) + labels[..., None]).astype(np.float32)
    places = {label: np.argwhere(labels == label) for label in (1, 2)}
    return CaseInMemory(data, labels, places | {(-1, 0, 1, 2): np.argwhere(labels < 3)})


class Stop:
    """Asks to stop after a step."""

    def __init__(self, step=None):
        self.step = step

    def begin(self):
        pass

    def agreed(self, step):
        return self.step is not None and step >= self.step


@pytest.fixture(scope="module")
def steps():
    return make_steps(
        models.create(**SETTINGS, num_classes=3, seed=0),
        PLAN["configurations"]["2d"],
        num_classes=3,
        length=Length(2, 3, 2),
        seed=0,
        batch_size=2,  # on eight devices, six examples are padding
    )


def train(steps, folder, interruption=None):
    config = {"model": SETTINGS, "dtype": "float32"}
    return train_fold(
        steps,
        [random_case(0), random_case(1)],
        [random_case(2)],
        class_names=NAMES,
        folder=folder,
        metadata={"config": config | {"data": {}}, "label_scheme": {"class_names": NAMES}, "data_sha256": "x"},
        settings=LoopSettings(steps_per_epoch=3),
        interruption=interruption or Stop(),
        title="test",
    )


@pytest.fixture(scope="module")
def finished(steps, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fold")
    return folder, train(steps, folder)


def test_a_stopped_fold_resumes_to_the_same_result(steps, finished, tmp_path):
    folder, record = finished
    with pytest.raises(Preempted, match="stopped at step 2 and saved"):
        train(steps, tmp_path, Stop(2))
    resumed = train(steps, tmp_path)
    for key in ("train_loss", "val_loss", "val_dice", "smoothed_dice", "learning_rate"):
        assert [row[key] for row in resumed.history] == [row[key] for row in record.history], key
    weights = [
        jax.tree.leaves(checkpoint.load_trained(f / "checkpoints", mesh(), "latest").params) for f in (folder, tmp_path)
    ]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


def mesh():
    from bcss_jax.training.sharding import make_mesh

    return make_mesh(jax.devices()[:1])


def test_it_learns_with_the_schedule_of_nnunet(finished):
    folder, record = finished
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-2, 1e-2 * 0.5**0.9])
    assert float(rows[1]["train_loss"]) < float(rows[0]["train_loss"])
    assert set(rows[0]) >= {"dice_tumor", "dice_stroma", "smoothed_dice"}
    assert (folder / "progress.png").stat().st_size > 10_000
    dice = [row["val_dice"] for row in record.history]
    assert record.history[1]["smoothed_dice"] == pytest.approx(0.9 * dice[0] + 0.1 * dice[1])


def test_the_best_epoch_has_the_highest_smoothed_dice():
    record = FoldRecord()
    best = []
    for dice in (0.5, 0.9, 0.1, float("nan"), 0.95):
        best.append(record.end_epoch({"val_dice": dice, "smoothed_dice": record.smoothed(dice)}))
    assert best == [True, True, False, False, True]
    assert record.history[3]["smoothed_dice"] == record.history[2]["smoothed_dice"]


@pytest.mark.parametrize("ignore", [None, 3])
def test_the_loss_equals_nnunet(ignore):
    """Compares value and gradient at every resolution. nnU-Net uses -Dice where this project uses 1 - Dice."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    random = np.random.RandomState(0)
    labels = random.randint(0, 3 if ignore is None else 4, (2, 32, 32))
    logits = [random.standard_normal((2, 32 // 2**i, 32 // 2**i, 3)).astype(np.float32) for i in range(4)]
    weights = losses.deep_supervision_weights(len(logits))

    def ours(logits):
        objective = losses.Objective(num_classes=3, ignore_index=3, classes=(1, 2), deep_supervision=weights)
        sums = losses.deep_supervision_sums(logits, jnp.asarray(labels), objective)
        return losses.deep_supervision_loss(sums, objective)

    value, gradients = jax.value_and_grad(ours)([jnp.asarray(each) for each in logits])
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(
        dice, {}, weight_ce=1, weight_dice=1, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss
    )
    theirs = DeepSupervisionWrapper(loss, weights)
    leaves = [torch.tensor(each.transpose(0, 3, 1, 2), requires_grad=True) for each in logits]
    truth = torch.tensor(labels[:, None], dtype=torch.float32)
    targets = [torch.nn.functional.interpolate(truth, leaf.shape[2:], mode="nearest-exact") for leaf in leaves]
    expected = theirs(leaves, targets)
    expected.backward()
    assert float(value) - 1 == pytest.approx(expected.item(), rel=1e-5)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        wanted = np.zeros(gradient.shape) if leaf.grad is None else leaf.grad.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max() + 1e-12)
