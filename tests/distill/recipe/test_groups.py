"""Every setting is a flag, is explained, and refuses values out of its range by name."""

from dataclasses import fields

import pytest

from distill import losses
from distill.commands.train import parse
from distill.recipe import Recipe
from runtime.errors import UsageError


def test_every_setting_is_a_flag():
    for field in fields(Recipe):
        if isinstance(field.default, bool):
            flag = f"--{'no-' if field.default else ''}{field.name.replace('_', '-')}"
            assert getattr(parse([flag]), field.name) is not field.default


def test_every_setting_is_explained():
    import ast
    import inspect

    explained = set()
    for group in Recipe.__mro__[:-1]:
        body = ast.parse(inspect.getsource(group)).body[0].body
        for statement, following in zip(body, [*body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign):
                assert isinstance(following, ast.Expr) and isinstance(following.value.value, str), (
                    statement.target.id
                )
                explained.add(statement.target.id)
    assert explained == {field.name for field in fields(Recipe)}


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch", 0),
        ("grad_accum", 0),
        ("eval_batch", -1),
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", float("inf")),
        ("lr", NAN),
        ("lr_base", 0.0),
        ("weight_decay", -0.1),
        ("weight_decay", NAN),
        ("smoothing", 1.0),
        ("smoothing", -0.1),
        ("drop_path", 1.5),
        ("kd_temperature", 0.0),
        ("kd_temperature", NAN),
        ("kd_gamma", -1.0),
        ("distill_loss_weight", -1.0),
        ("mixup", -1.0),
        ("hflip", 2.0),
        ("reprob", -0.5),
        ("clip_grad", 0.0),
        ("layer_decay", 0.0),
        ("layer_decay", 1.1),
        ("workers", -2),
        ("workers", 100_000),
        ("img_size", 4097),
        ("input_size", (32, 16_385)),
        ("teacher_input_size", [20_000, 32]),
        ("crop_padding", 4097),
        ("num_classes", 10**8),
        ("freeze", "stages:" + "9" * 5000),
        ("img_size", -1),
        ("warmup_epochs", -1.0),
        ("crop_padding", -1),
        ("checkpoint_minutes", -1.0),
        ("model_ema_decay", 1.1),
        ("scale", (0.0, 1.0)),
        ("scale", (0.9, 0.1)),
        ("ratio", (0.0, 1.0)),
        ("num_classes", -1),
        ("seed", -1),
        ("color_jitter", -0.1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(UsageError, match=f"^{name.replace('_', '-')} "):
        Recipe(**{name: value})


def test_the_limits_of_a_range_are_allowed():
    Recipe(
        epochs=1,
        smoothing=0.0,
        drop_path=0.0,
        hflip=1.0,
        layer_decay=1.0,
        kd_gamma=0.0,
        scale=(1.0, 1.0),
        workers=-1,
    )


def test_mixing_needs_pairs():
    with pytest.raises(UsageError, match="even number"):
        Recipe(mixup=0.2, batch=7)


def test_no_teacher_and_a_teachers_file_contradict():
    with pytest.raises(UsageError, match="teacher-ckpt is given"):
        Recipe(teacher="none", teacher_ckpt="t.pth")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"losses": ("nkd",), "feature_loss": "fd"}, "feature-loss 'fd': expected none beside --losses"),
        ({"kd_loss": "none"}, "kd-loss 'none': expected a loss, because there is no --feature-loss"),
        ({"feature_weight": -1.0}, "feature-weight -1.0: expected 0 or more"),
    ],
)
def test_losses_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        Recipe(**settings)


@pytest.mark.parametrize(
    ("flag", "table", "text"),
    [("--kd-loss", losses.LOGIT, "kl"), ("--feature-loss", losses.FEATURE, "fitnets")],
)
def test_the_flags_take_every_loss_there_is_and_no_other_word(flag, table, text):
    assert text in table
    for name in (*table, "none"):
        options = parse(
            [flag, name, *(["--feature-loss", "at"] if (flag, name) == ("--kd-loss", "none") else [])]
        )
        assert getattr(options, flag[2:].replace("-", "_")) == name
    with pytest.raises(UsageError, match=rf"^{flag} klx: expected .*{text}.*\. See distill train --help$"):
        parse([flag, "klx"])
    with pytest.raises(UsageError, match=f"^{flag[2:]} klx: expected one of .*{text}"):
        Recipe(**{flag[2:].replace("-", "_"): "klx"})
