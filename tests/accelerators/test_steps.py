"""Production steps are compiled for accelerators that this machine does not have."""

import importlib.util

import pytest
from helpers.sam_small import use_small_sams

from bcss_jax.accelerators.computed_steps import Key
from bcss_jax.accelerators.exchanges import STATISTICS, exchanges
from bcss_jax.accelerators.hlo_text import read_program
from bcss_jax.accelerators.network_table import compute_step
from bcss_jax.accelerators.report import warnings
from bcss_jax.accelerators.steps import compile_step, recipe
from bcss_jax.accelerators.targets import TARGETS, describe_devices
from bcss_jax.accelerators.traffic import account
from bcss_jax.commands import compile_for
from bcss_jax.labels import find_scheme
from bcss_jax.models import MODELS
from bcss_jax.training.sharding import make_mesh

COMPILERS = {"cuda": "jax_cuda13_plugin", "tpu": "libtpu"}


def mesh_of(name, devices=1):
    target = TARGETS[name]
    if importlib.util.find_spec(COMPILERS[target.platform]) is None:
        pytest.skip(f"{COMPILERS[target.platform]} is not installed: no compiler for {target.platform}")
    return make_mesh(describe_devices(target, devices))


def compiled(step, mesh, batch, name="unet", **model):
    config = recipe(name, "bfloat16", batch, 1, 32)
    config.model.update(model)
    return compile_step(step, config, find_scheme(config.labels), mesh, 32)


@pytest.mark.parametrize("target", ["h100", "v5e"])
@pytest.mark.parametrize("step", ["train", "evaluate", "slide"])
def test_steps_of_a_small_unet(step, target):
    found = compiled(step, mesh_of(target), 4, width=8, depth=1)
    done = account(read_program(found.text))
    forward = 3 if step == "train" else 1  # forward, and the gradients of inputs and kernels
    # Eight 3x3 convolutions of which two are at half the resolution, at least.
    assert done.operations() > forward * 2 * 4 * 32 * 32 * 9 * 8 * 8 * 2
    assert found.memory.total() > 4 * 32 * 32 * 3 and done.bytes() > found.memory.arguments
    assert not [line for line in warnings(done) if "float64" in line or "host" in line]
    network = [work for work in done.works if any("unet.py" in f.file for f in done.program.stack(work.instruction))]
    assert network


def test_rematerialization_takes_less_memory():
    mesh, scheme, temporary = mesh_of("h100"), find_scheme("tumor_stroma"), []
    for remat in (False, True):
        config = recipe("unet", "bfloat16", 16, 1, 64, remat)
        config.model.update(width=8, depth=1)
        temporary.append(compile_step("train", config, scheme, mesh, 64).memory.temporary)
    assert temporary[1] < temporary[0]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["h100", "v5e"])
def test_a_small_transformer(target):
    """Its maps of 14 x 14 pixels are no multiples of the tiles of a matrix product."""
    mesh = mesh_of(target)
    config = recipe("transunet", "bfloat16", 2, 1, 224)
    config.model.update(
        width_factor=0.5, resnet_layers=(1, 1, 1), skip_channels=(256, 128, 32, 0), decoder_channels=(8, 8, 8, 8),
        hidden_size=64, mlp_size=64, num_heads=2, num_layers=1,
    )  # fmt: skip
    found = account(read_program(compile_step("train", config, find_scheme(config.labels), mesh, 224).text))
    assert found.bytes_by_kind()["matrix product" if target == "h100" else "convolution"] > 0


def test_several_gpus_add_up_gradients_and_wait_less_with_statistics_of_their_own():
    found = {}
    for sync in (True, False):
        config = recipe("unet", "bfloat16", 4, 1, 32)
        config.model.update(width=8, depth=1)
        config.sync_batch_norm = sync
        text = compile_step("train", config, find_scheme(config.labels), mesh_of("h100", 2), 32).text
        found[sync] = exchanges(account(read_program(text)))
        assert "all-reduce" in {each.kind for each in found[sync]}
    waits = {sync: sum(each.purpose == STATISTICS and each.at_once for each in found[sync]) for sync in found}
    assert waits[True] >= 8 and waits[False] < 4  # of four layers, forward and backward
    size = {sync: sum(each.size for each in found[sync]) for sync in found}
    assert min(size.values()) > 2 * 9 * 8 * 8  # one 3x3 convolution at least, in bfloat16


def test_gradients_on_gpus_are_convolutions_of_cudnn():
    """The form for CPUs, a loop over matrix products, must not be compiled for GPUs."""
    found = account(read_program(compiled("train", mesh_of("h100"), 4, width=8, depth=1).text))
    targets = {work.instruction.attribute("custom_call_target") for work in found.works}
    assert {"__cudnn$convForward", "__cudnn$convBackwardInput", "__cudnn$convBackwardFilter"} <= targets
    assert all(work.times == 1 for work in found.works)


@pytest.mark.slow
def test_the_step_of_a_pretraining_compiles(capsys):
    mesh_of("h100")
    assert compile_for.main(["--target=h100", "--batch=2", "--pretrain=vit_tiny16"]) == 0
    printed = capsys.readouterr().out
    assert "DINO with vit_tiny16, bfloat16, batch 2, views of 224 and 96 pixels, 65536 prototypes" in printed
    assert "pretrain step: compiled in" in printed and "bcss_jax/pretraining/views/crops.py" in printed


@pytest.mark.parametrize("encoder", ["tiny", "tiny2"])
def test_prompts_on_segment_anything_compile(monkeypatch, capsys, encoder):
    use_small_sams(monkeypatch)
    mesh_of("h100")
    assert compile_for.main(["--target=h100", f"--sam={encoder}", "--side=64"]) == 0
    printed = capsys.readouterr().out
    assert f"{encoder}, bfloat16, batch 1, 64 pixels" in printed
    assert "encode step: compiled in" in printed and "decode step: compiled in" in printed
    assert "images/s a device" in printed and "prompts/s a device" in printed
    assert "bcss_jax/models/sam/mask_decoder.py" in printed


@pytest.mark.slow
@pytest.mark.parametrize("step", ["tune", "tune_frozen"])
def test_a_training_with_prompts_compiles(monkeypatch, capsys, step):
    use_small_sams(monkeypatch)
    mesh_of("h100")
    command = ["--target=h100", "--sam=tiny", "--side=32", "--batch=4", "--micro_batches=2", f"--steps={step}"]
    assert compile_for.main(command) == 0
    printed = capsys.readouterr().out
    assert f"{step} step: compiled in" in printed and "tiles/s a device" in printed


def test_the_command_prints_all_steps(capsys):
    mesh_of("h100")
    assert compile_for.main(["--target=h100", "--batch=2", "--side=32", "--steps=evaluate,slide"]) == 0
    printed = capsys.readouterr().out
    assert "evaluate step: compiled in" in printed and "slide step: compiled in" in printed
    assert "images/s a device" in printed and "bcss_jax/models/unet.py" in printed
    assert compile_for.main(["--target=h100", "--steps=test"]) == 2
    assert "--steps=test: must be some of train, evaluate, slide" in capsys.readouterr().err
    assert compile_for.main(["--target=h100", "--all", "--model=unet"]) == 2
    assert "--all chooses --model itself" in capsys.readouterr().err
    assert compile_for.main(["--target=h100", "--all", "--remat"]) == 2
    assert "--all chooses --remat itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target=h101"], "there is no such target"),
        (["--model=unet"], "--target"),
        (["--target=h100", "--batch=0"], "--batch=0"),
        (["--target=v5e:2x2", "--devices=8"], "--target=v5e:2x2 has 4 devices"),
        (["--target=h100", "--pretrain=vit_tiny16", "--model=unet"], "--pretrain has one step and no --model"),
        (["--target=h100", "--pretrain=vit_tiny"], "vit_tiny16"),
        (["--target=h100", "--all", "--pretrain=vit_tiny16"], "--all chooses --pretrain itself"),
        (["--target=h100", "--sam=sam_vit_c"], "sam_vit_b"),
        (["--target=h100", "--sam=sam_vit_b", "--side=1000"], "multiple of 16"),
        (["--target=h100", "--sam=sam_vit_b", "--model=sam"], "--sam has no --model"),
        (["--target=h100", "--sam=sam_vit_b", "--pretrain=vit_tiny16"], "--pretrain has one step and no --sam"),
        (["--target=h100", "--sam=sam_vit_b", "--steps=train"], "must be some of encode, decode, tune, tune_frozen"),
        (["--target=h100", "--sam=sam_vit_b", "--devices=2"], "run on one device"),
        (["--target=h100", "--sam=sam_vit_b", "--micro_batches=2"], "encode and decode have no --micro_batches"),
        (["--target=h100", "--sam=sam_vit_b", "--remat"], "encode and decode have no --remat"),
        (["--target=h100", "--all", "--sam=sam_vit_b"], "--all chooses --sam itself"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, message, capsys):
    assert compile_for.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("target", ["h100", "a100", "t4"])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_network_is_compiled(model, target):
    mesh_of(target)
    key = Key(target, 1, model, "float16" if target == "t4" else "bfloat16", 8, 224)
    assert compute_step(TARGETS[target], key).micro_batches == 1
