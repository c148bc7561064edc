"""A network that cannot take the images is refused before anything is written."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill import checkpoint as checkpoints
from distill import models
from distill.__main__ import main
from distill.run import teacher_fit, trial
from distill.run.trial import require_teaches, require_trains
from distill.training.trainer import Trainer
from runtime.errors import ArtifactError, UsageError

pytestmark = pytest.mark.usefixtures("without_report")


def test_a_network_that_fits_is_left_as_it_was():
    network = models.build("resnet20", 3, {"width": 0.25})
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    require_trains(network, "resnet20", (3, 16, 24), 8, 3)
    assert torch.rand(1) == expected
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


CASES = {
    "one channel": ["--student-args", "in_chans=1"],
    "features only": ["--student-args", "features_only=true"],
    "too small for ConvNeXt": ["--student", "convnext_atto", "--img-size", "8"],
    ("one image with batch norm on one pixel"): [
        "--batch",
        "1",
        "--img-size",
        "8",
        "--student",
        "mobilenetv2_035",
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_the_reason_is_said_and_nothing_is_left(case, tree, tmp_path, capsys):
    words = ["train", "--data", str(tree(names=("ant", "bee"))), "--output", str(tmp_path / "run")]
    more = CASES[case] if "--student" in CASES[case] else ["--student", "resnet10t", *CASES[case]]
    assert main([*words, "--teacher", "none", "--epochs", "1", "--batch", "8", *more]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and not (tmp_path / "run").exists()


def test_norms_that_keep_their_statistics_take_one_image():
    """On maps of one pixel a batch norm refuses one image only where it computes statistics."""
    network = models.build("resnet10t", 3)
    with pytest.raises(UsageError, match="cannot take 3 x 32 x 32 images at batch 1"):
        require_trains(network, "resnet10t", (3, 32, 32), 1, 3)
    require_trains(network, "resnet10t", (3, 32, 32), 1, 3, frozen_norms=True)
    require_trains(network, "resnet10t", (3, 32, 32), 1, 3, frozen="all-but-head")
    with pytest.raises(UsageError, match="cannot take"):
        require_trains(network, "resnet10t", (3, 32, 32), 1, 3, frozen="stages:2")
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_teacher_whose_logits_are_nan_is_named():
    network = models.build("resnet20", 3, {"width": 0.25})
    with torch.no_grad():
        network.linear.bias[0] = float("nan")
    with pytest.raises(ArtifactError, match="teacher resnet20: its logits hold NaN"):
        require_teaches(network, "resnet20", (3, 16, 16), 3)


def test_a_wrong_number_of_logits_is_refused():
    with pytest.raises(UsageError, match=r"gives \(2, 4\) for 2 images, not logits \(2, 3\)"):
        require_trains(models.build("resnet20", 4, {"width": 0.25}), "resnet20", (3, 16, 16), 8, 3)


SMALL = [
    *("--student", "resnet20", "--student-args", "width=0.25", "--img-size", "16"),
    *("--batch", "8", "--epochs", "2", "--device", "cpu", "--mixup", "0.3", "--drop-path", "0.1"),
]


@pytest.fixture
def train(npz, tmp_path, capsys):
    """train(folder, *flags) -> (exit code, the last line of stderr)."""
    data = npz()

    def call(folder, *flags):
        capsys.readouterr()
        code = main(["train", "--data", data, *SMALL, "--output", str(tmp_path / folder), *flags])
        return code, capsys.readouterr().err.strip().splitlines()[-1]

    return call


TEACHING = [
    *("--kd-loss", "kl", "--feature-loss", "fd", "--model-ema", "--opt", "adamw"),
]


@pytest.fixture
def teacher(train, tmp_path):
    assert train("teacher", "--teacher", "none", "--epochs", "1", "--student-args", "width=0.5")[0] == 0
    return ["--teacher-ckpt", str(tmp_path / "teacher" / "best.pth")]


def test_a_run_is_the_same_to_the_bit_with_and_without_the_trial(train, teacher, tmp_path, monkeypatch):
    assert train("with", *TEACHING, *teacher)[0] == 0
    tried = []
    monkeypatch.setattr(trial, "rehearse", tried.append)
    assert train("without", *TEACHING, *teacher)[0] == 0 and len(tried) == 1
    one, other = (checkpoints.load(tmp_path / name / "last.pth") for name in ("with", "without"))
    assert all(value.equal(other.state_dict[key]) for key, value in one.state_dict.items())
    for key in ("ema", "projectors"):
        assert one.state[key]
        assert all(value.equal(other.state[key][name]) for name, value in one.state[key].items())
    columns = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("with", "without")]
    assert columns[0].count("train_fd_loss") == columns[1].count("train_fd_loss") == 2


def test_the_generators_are_as_they_were(train, teacher, monkeypatch):
    seen = []

    def watched(task, rehearse=trial.rehearse):
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        rehearse(task)
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        seen.append(before[:2] == after[:2] and before[2].equal(after[2]))
        assert task.teacher.taps is None

    monkeypatch.setattr(trial, "rehearse", watched)
    assert train("run", *TEACHING, *teacher)[0] == 0
    assert seen == [True]


@pytest.mark.parametrize(("seconds", "expected"), [(60.0, [2, 8]), (0.0, [2])])
def test_a_processor_tries_the_whole_batch_only_where_it_is_quick(train, monkeypatch, seconds, expected):
    sizes, trained = [], []

    class Watched(Trainer):
        def update(self, batches):
            sizes.append(len(batches[0].labels))
            super().update(batches)

    monkeypatch.setattr(trial, "Trainer", Watched)
    monkeypatch.setattr(trial, "FULL_BATCH_SECONDS", seconds)
    monkeypatch.setattr(
        Trainer, "step", lambda self, batches, step=Trainer.step: trained.append(step(self, batches))
    )
    assert train("run", "--teacher", "none")[0] == 0
    assert sizes == expected and len(trained) == 2 * 4  # 32 images: the real steps are not the trial's


def test_a_gpu_tries_the_whole_batch_and_both_ends_of_validation():
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert trial._step_sizes(64, gpu) == [64] and trial._step_sizes(64, cpu) == [2, 64]
    assert trial._step_sizes(1, cpu) == [1]

    def task(images, batch, device):
        return SimpleNamespace(val=range(images), recipe=SimpleNamespace(eval_batch=batch), device=device)

    assert trial._validation_sizes(task(1000, 256, gpu)) == [232, 256]
    assert trial._validation_sizes(task(512, 256, gpu)) == [256]
    assert trial._validation_sizes(task(40, 256, gpu)) == [40]
    assert trial._validation_sizes(task(0, 256, gpu)) == [1, 256]  # a stream, whose length nobody knows
    assert trial._validation_sizes(task(257, 256, cpu)) == [1]


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("where", "advice"),
    [("update", "Give --batch 4 --grad-accum 2 for the same step,"), ("validate", "Give --eval-batch 1,")],
)
def test_memory_that_runs_out_is_said_before_anything_is_written(
    train, tmp_path, monkeypatch, where, advice, error
):
    class Full(Trainer):
        pass

    def fail(self, batches):
        if where == "validate" or len(batches[0].labels) == 8:
            raise error

    setattr(Full, where, fail)
    monkeypatch.setattr(trial, "Trainer", Full)
    code, said = train("run", "--teacher", "none")
    assert code == 3 and advice in said and said.startswith("error: out of memory on cpu with")
    assert not (tmp_path / "run").exists()


def test_a_step_that_fails_is_the_users_end(train, tmp_path, monkeypatch):
    class Failing(Trainer):
        def update(self, batches):
            raise RuntimeError("Expected more than 1 value per channel\nwhen training")

    monkeypatch.setattr(trial, "Trainer", Failing)
    code, said = train("run", "--teacher", "none")
    assert code == 2 and "resnet20 cannot take 3 x 16 x 16 images at batch 2: Expected more than 1" in said
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_is_tried_before_it_is_fitted(train, npz, tmp_path, monkeypatch):
    """The fit may last hours; a step that does not fit is said before it."""
    other = npz(names=("ant", "bee"), folder="other_set")
    assert train("other", "--teacher", "none", "--epochs", "1", "--data", other)[0] == 0
    order, fit = [], teacher_fit.fit_head
    monkeypatch.setattr(trial, "rehearse", lambda task: order.append(("trial", task.teacher.origin.model)))
    monkeypatch.setattr(teacher_fit, "fit_head", lambda *given: order.append(("fit", "head")) or fit(*given))
    assert train("run", "--teacher-ckpt", str(tmp_path / "other" / "best.pth"))[0] == 0
    assert order == [("trial", "resnet20"), ("fit", "head")]


def rewritten(path, change):
    """The checkpoint with its weights changed; returns the flags that name it."""
    found = checkpoints.load(path)
    change(found.state_dict)
    checkpoints.save(found, path)
    return ["--teacher-ckpt", str(path)]


def test_a_teacher_that_does_not_fit_fp16_is_said_before_the_run(train, teacher, tmp_path):
    """Logits of 1e6 are beyond 65504, the largest number of fp16."""
    flags = rewritten(tmp_path / "teacher" / "best.pth", lambda weights: weights["linear.bias"].fill_(1e6))
    code, said = train("run", *flags, "--teacher-dtype", "fp16")
    assert code == 2 and "in fp16 and finite in fp32" in said and "Give --teacher-dtype fp32" in said
    assert not (tmp_path / "run").exists()
    assert train("run", *flags, "--teacher-dtype", "fp32", "--epochs", "1")[0] == 0


def test_a_teacher_whose_numbers_overflow_on_real_images_is_said_before_the_run(
    train, teacher, tmp_path, monkeypatch
):
    monkeypatch.setattr(trial, "require_teaches", lambda *given: None)  # noise did not show it
    flags = rewritten(tmp_path / "teacher" / "best.pth", lambda weights: weights["linear.weight"].fill_(3e38))
    code, said = train("run", *flags)
    assert code == 4 and "on the validation images the teacher's logits are NaN or infinite" in said
    assert not (tmp_path / "run").exists()
