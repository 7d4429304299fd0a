"""MODEL_CARD.md has the facts of a run, and nothing that is not known."""

import pytest
from helpers.evaluation_small import data, evaluation

from bcss_jax.errors import StorageError
from bcss_jax.evaluation.reporting import model_card


@pytest.fixture(scope="module")
def small():
    return evaluation()[0]


def sections(text):
    parts = text.split("\n## ")
    return {part.split("\n", 1)[0]: part for part in parts}


def test_all_sections_and_facts(small):
    parts = sections(model_card.markdown(small))
    assert list(parts) == ["# unet", "Use", "Data", "Scores", "Limitations", "Pretrained weights", "Loading", "Origin"]
    assert "Not for diagnosis" in parts["Use"] and "0.25 µm per pixel" in parts["Use"]
    assert "kaggle224, institute split" in parts["Data"] and "val of the same" in parts["Data"]
    assert "CC0" in parts["Data"] and "not checked" in parts["Data"]
    for name in ("tumor", "stroma", "macro"):
        low, high = small["scores"]["intervals"]["dice_global"][name]
        assert (
            f"| {name} | {small['scores']['scores']['dice_global'][name]:.3f} | {low:.3f} to {high:.3f} |"
            in parts["Scores"]
        )
    assert "2,000 resamples of 9 patients" in parts["Scores"] and "Temperature 1.500" in parts["Scores"]
    assert "no class for other tissue" in parts["Limitations"]
    assert "None: training started from random weights." in parts["Pretrained weights"]
    assert 'checkpoint.load_model("runs/unet/checkpoints", "best")' in parts["Loading"]
    assert "[0.5, 0.5, 0.5]" in parts["Loading"] and "to_torch_state" in parts["Loading"]
    assert "best, epoch 5" in parts["Origin"] and "ab" * 32 in parts["Origin"] and "jax 0.10.2" in parts["Origin"]


def test_the_limitations_of_the_published_split_and_of_the_sample(small):
    published = data(split="published", patients_in_two_parts=151)
    text = model_card.markdown(small | {"data": published, "trained_on": published})
    assert "too optimistic" in sections(text)["Limitations"] and "patients in more than one split: 151" in text
    sample = data(layout="sample", split="built-in")
    text = model_card.markdown(small | {"data": sample, "trained_on": sample})
    assert "synthetic" in sections(text)["Limitations"] and "CC0" not in text


def test_pretrained_weights_are_named_without_a_made_up_license(small):
    pretrained = {"file": "resnet101.safetensors", "sha256": "cd" * 32}
    part = sections(model_card.markdown(small | {"pretrained": pretrained}))["Pretrained weights"]
    assert "resnet101.safetensors" in part and "cd" * 32 in part and "not recorded" in part
    assert "BSD" not in part and "Apache" not in part


def test_an_ensemble_of_unknown_training(small):
    members = [{"name": n, "folder": f"runs/{n}", "which": "best", "step": 1, "epoch": None} for n in ("a", "b")]
    text = model_card.markdown(
        small | {"model": "ensemble", "trained_on": None, "config": None, "versions": None, "pretrained": None,
                 "temperature": None, "checkpoint": {"members": members}}
    )  # fmt: skip
    assert "Trained on: not known." in text and "ensemble" in text and "epoch not known" in text
    assert 'load_model("runs/a", "best")' in text and 'load_model("runs/b", "best")' in text
    assert "random weights" not in text and "None" not in text.replace("None are known", "")


def test_names_stay_names(small):
    name = "a|b <script>`x`\n# title"
    text = model_card.markdown(
        small | {"name": name, "model": "`x`\n# y", "data": data(layout=name),
                 "pretrained": {"file": name, "sha256": "`"},
                 "checkpoint": small["checkpoint"] | {"folder": '"); import os\n```'}}
    )  # fmt: skip
    assert "\\<script\\>" in text and "\n<script" not in text and "[^\\]<script" not in text
    assert [line for line in text.splitlines() if line.startswith("# ")] == ["# a\\|b \\<script\\>\\`x\\` \\# title"]
    assert r'load_model("\"); import os\n```", "best")' in text
    assert [line for line in text.splitlines() if line.startswith("```")] == ["```python", "```"]


def test_the_loading_lines_are_python_that_imports_what_exists(small):
    code = sections(model_card.markdown(small))["Loading"].split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    found = {}
    exec("\n".join(line for line in code.splitlines() if line.startswith("from ")), found)
    assert callable(found["checkpoint"].load_model) and callable(found["pretrained"].to_torch_state)


def test_the_file(tmp_path, small):
    model_card.write(tmp_path / "MODEL_CARD.md", small)
    assert (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8") == model_card.markdown(small)
    with pytest.raises(StorageError):
        model_card.write(tmp_path / "none" / "MODEL_CARD.md", small)
