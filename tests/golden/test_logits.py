"""Every logit loss against the original implementations: value and gradient, in float32 and float64, for
every case.
"""

import inspect

import numpy as np
import pytest
import torch

from distill import losses
from distill.losses.base import Outputs, cross_entropy
from runtime.errors import UsageError

TOLERANCE = {torch.float32: ((5e-5, 5e-5), (1e-4, 2e-6)), torch.float64: ((1e-6, 1e-12), (1e-6, 1e-12))}
"""(relative, absolute) of the loss, then of the gradient relative to its largest entry, as the golden README
states them; the absolute part in float64 is for values that are 0 up to rounding."""


class NotOursError(Exception):
    """A configuration that this project's losses cannot be set to."""


def with_labels(kd, kd_weight, task_weight):
    """What a trainer adds up: weighted distillation loss and weighted cross-entropy."""
    return lambda student, teacher, target: (
        kd_weight * kd(student, teacher, target) + task_weight * cross_entropy(student.logits, target)
    )


def standardized(name):
    def build(T, eps, std, **weights):
        if std != "unbiased":
            raise NotOursError(f"standardized by the {std} deviation")
        return losses.create(name, temperature=T, eps=eps, **weights)

    return build


KINDS = {
    "hinton_kd_plus_ce": lambda T, alpha: with_labels(losses.create("kl", temperature=T), alpha, 1 - alpha),
    "hard_label_kd": lambda ce_weight, kd_weight: with_labels(
        losses.create("deit_hard"), kd_weight, ce_weight
    ),
    "kl_only": lambda T: losses.create("kl", temperature=T),
    "nkd_masked": lambda temp, alpha: losses.create("nkd", temperature=temp, gamma=alpha),
    "nkd_stable": lambda temp, gamma: losses.create("nkd", temperature=temp, gamma=gamma),
    "dkd": lambda T, alpha, beta: losses.create("dkd", temperature=T, alpha=alpha, beta=beta),
    "dist": lambda tau, beta, gamma: losses.create("dist", temperature=tau, beta=beta, gamma=gamma),
    "kl_zscore": standardized("lskd"),
    "dkd_zscore": standardized("lskd_dkd"),
    "mlkd_batch_consistency": lambda T: losses.create("mlkd", temperatures=[T], alpha=0, beta=1, gamma=0),
    "mlkd_class_consistency": lambda T: losses.create("mlkd", temperatures=[T], alpha=0, beta=0, gamma=1),
    "bce_with_teacher_softmax": lambda: losses.create("binary_kl"),
    "ofa": lambda eps, T: losses.create("ofa", eps=eps, temperature=T),
    "deit_soft": lambda alpha, tau: with_labels(
        losses.create("deit_soft", temperature=tau), alpha, 1 - alpha
    ),
    "deit_hard": lambda alpha: with_labels(losses.create("deit_hard"), alpha, 1 - alpha),
}
"""Kind of configuration in cases.json -> our loss from its parameters."""


def build(config):
    """The loss of an entry of `logit_configs`. Raises NotOursError with the reason when there is none."""
    params = {key: value for key, value in config["params"].items() if key != "note"}
    kind = config["loss"]
    if kind not in KINDS:
        raise NotOursError(f"unknown kind {kind}")
    if config["label"] not in ("hard", "soft", "none"):
        raise NotOursError(f"unknown label {config['label']}")
    try:
        inspect.signature(KINDS[kind]).bind(**params)
    except TypeError as error:
        raise NotOursError(f"{kind}: {error}") from error
    return KINDS[kind](**params)


@pytest.fixture(scope="session")
def configs(golden_content):
    """({name: (kind, loss, whether it is given the mixed label)}, {name: why it is left out})."""
    built, left_out = {}, {}
    for name, config in golden_content.get("logit_configs", {}).items():
        try:
            built[name] = config["loss"], build(config), config["label"] == "soft"
        except (NotOursError, UsageError) as error:
            left_out[name] = str(error)
    return built, left_out


def test_no_configuration_is_left_out(configs):
    built, left_out = configs
    if not built and not left_out:
        pytest.skip("this folder has no logit_configs")
    if left_out:
        pytest.xfail("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_loss_and_gradient_are_those_of_the_original(logit_case, read, configs, dtype):
    arrays, (built, left_out) = read(logit_case), configs
    wrong = []
    for name in set(logit_case["configs"]) - set(left_out):
        kind, loss, soft = built[name]
        target = torch.tensor(arrays["label_soft" if soft else "label"])
        student = torch.tensor(arrays["logits_student"], dtype=dtype, requires_grad=True)
        value = loss(Outputs(student), Outputs(torch.tensor(arrays["logits_teacher"], dtype=dtype)), target)
        value.backward()
        assert value.isfinite() and student.grad.isfinite().all(), name
        (rel, close), (grad_rel, grad_close) = TOLERANCE[dtype]
        exact, grad = float(arrays[f"{name}/loss64"]), arrays[f"{name}/grad64"].astype(np.float64)
        off, grad_off = abs(value.item() - exact), np.abs(student.grad.double().numpy() - grad).max()
        if not off <= close + rel * abs(exact):
            wrong.append(f"{name}: loss {value.item()} instead of {exact}")
        noise = (
            kind == "dist" and not np.ptp(arrays["logits_student"], axis=1).any()
        )  # README: rounding noise in the original
        if not noise and not grad_off <= grad_close + grad_rel * np.abs(grad).max():
            wrong.append(f"{name}: gradient off by {grad_off:.3g}, largest {np.abs(grad).max():.3g}")
    assert not wrong
