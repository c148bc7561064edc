"""Every teacher family with every student family and every loss: two steps of `distill train` each, and what
can be exported.
"""

import json

import numpy as np
import pytest
import torch
from stirring import stirred

from distill import __main__ as cli
from distill import checkpoint as checkpoints
from distill import losses, models
from distill.recipe import Recipe
from distill.teacher import Teacher
from distill.training import trainer as trainers
from distill.training.task import Task
from distill.training.trainer import Trainer
from runtime import load
from runtime.images import ArraySet

SIZE, CLASSES, BATCH = 32, 4, 4
TEACHERS = {
    "slak": (
        "slak_tiny",
        {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "kernel_sizes": [13, 11, 9, 7], "patch_size": 2},
    ),
    "replknet": (
        "replknet_31b",
        {"channels": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "kernel_sizes": [13, 11, 9, 7]},
    ),
    "unireplknet": (
        "unireplknet_a",
        {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "kernel_sizes": [[3], [13], [13], [13]]},
    ),
    "convnext": ("convnext_atto", {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "patch_size": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": SIZE,
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
        },
    ),
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2},
    ),
}
STUDENTS = {
    "resnet": ("resnet20", {"width": 0.25}),
    "convnext": ("convnext_atto", {"dims": [4, 8, 8, 12], "depths": [1, 1, 1, 1], "patch_size": 2}),
    "mobilenet": ("mobilenetv3_small_050", {}),
}
LOSSES = [*losses.LOGIT, *losses.FEATURE]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (2 * BATCH, SIZE, SIZE, 3)).astype(np.uint8)
    return ArraySet("made", pixels, np.arange(2 * BATCH) % CLASSES, ["ant", "bee", "cat", "dog"])


@pytest.fixture(scope="module")
def networks():
    """networks(family) -> the teacher's network, built once."""
    made = {}

    def get(family):
        if family not in made:
            torch.manual_seed(0)
            made[family] = models.build(TEACHERS[family][0], CLASSES, TEACHERS[family][1])
        return made[family]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_two_steps(networks, images, tmp_path, monkeypatch, teacher, student, loss):
    monkeypatch.setattr(trainers.checkpoints, "save", lambda *_: None)  # files are not what is tested here
    name, model_args = STUDENTS[student]
    kind = {"kd_loss": loss} if loss in losses.LOGIT else {"kd_loss": "none", "feature_loss": loss}
    recipe = Recipe(
        data="made",
        student=name,
        student_args=tuple(f"{k}={v}" for k, v in model_args.items()),
        img_size=SIZE,
        batch=BATCH,
        epochs=1,
        eval_batch=2 * BATCH,
        warmup_epochs=0.0,
        opt="sgd",
        lr=1e-3,
        clip_grad=1.0,
        device="cpu",
        **kind,
    )
    spec, its_spec = models.preprocess_of(name, SIZE), models.preprocess_of(TEACHERS[teacher][0], SIZE)
    its = Teacher(networks(teacher), its_spec, spec, torch.device("cpu"))
    mine = Trainer(Task("student", recipe, tmp_path, images, images, spec, torch.device("cpu"), its))
    before = {key: value.clone() for key, value in mine.model.state_dict().items()}
    mine.fit()
    assert mine.updates == 2 and np.isfinite(mine.history[0].train_loss)
    after = mine.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(
        not torch.equal(before[key], after[key])
        for key in before
        if "running" not in key and "num_batches" not in key
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", [*TEACHERS, *(f"student {name}" for name in STUDENTS)])
def test_exports_as_the_same_network(family, networks, images, tmp_path, capsys):
    """Through the command, whose gate is 1e-4 of the largest logit; the last map's parity is seen through the
    classifier.
    """
    if family in TEACHERS:
        (name, model_args), model = TEACHERS[family], networks(family)
    else:
        name, model_args = STUDENTS[family.removeprefix("student ")]
        torch.manual_seed(0)
        model = models.build(name, CLASSES, model_args)
    stirred(model)  # fresh statistics and a small classifier would hide a wrong fold
    model.get_classifier().weight.data.normal_(0, 0.5)
    saved = checkpoints.Checkpoint(
        name, model_args, model.state_dict(), models.preprocess_of(name, SIZE), images.class_names
    )
    checkpoints.save(saved, tmp_path / "best.pth")
    np.savez(tmp_path / "val.npz", x=images.x, y=images.labels, class_names=np.array(images.class_names))
    assert (
        cli.main(
            [
                "export",
                "onnx",
                str(tmp_path / "best.pth"),
                "--data",
                f"npz:{tmp_path}",
                "--output",
                str(tmp_path / "net.onnx"),
                "--json",
                "--atol",
                "1e-4",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (
        found["parity_images"] == len(images)
        and found["parity_max_abs"] < 1e-3
        and found["parity_agreement_percent"] == 100
    )
    with load(tmp_path / "net.onnx") as predictor, torch.no_grad():
        batch = saved.preprocess.batch(images.x)
        expected = model.eval()(torch.from_numpy(batch)).numpy()
        assert np.abs(predictor.logits(batch) - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
