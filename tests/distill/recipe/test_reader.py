"""Recipes: the shipped ones say what they claim, YAML comes back the same, flags win, and wrong keys and
values are named.
"""

from dataclasses import fields, replace

import pytest
import yaml

from distill import recipe as recipes
from distill.commands.train import parse
from distill.recipe import Recipe
from distill.run import job
from distill.run.options import TrainOptions
from runtime.errors import UsageError


def test_every_shipped_recipe_loads():
    assert recipes.named() == ["cifar10-cpu", "cifar10-teacher", "demo", "finetune", "linear-probe", "paper"]
    for name in recipes.named():
        assert recipes.load(name) != Recipe()


def test_the_papers_recipe_has_the_papers_values():
    """Huang et al. 2023, the released script's defaults and commands."""
    paper = recipes.load("paper")
    assert (paper.opt, paper.weight_decay, paper.sched, paper.min_lr, paper.warmup_epochs) == (
        "adamw",
        0.05,
        "cosine",
        1e-6,
        20,
    )
    assert paper.batch * paper.grad_accum == 4096
    assert paper.peak_lr == pytest.approx(4e-3)
    assert replace(paper, grad_accum=8).peak_lr == pytest.approx(2e-3)  # scaled linearly
    assert paper.clip_grad is None
    assert paper.epochs == 300
    assert paper.aa == "rand-m9-mstd0.5-inc1"
    assert (paper.color_jitter, paper.reprob, paper.remode, paper.train_interpolation) == (
        0.4,
        0.25,
        "pixel",
        "bicubic",
    )
    assert (paper.mixup, paper.cutmix, paper.mixup_prob, paper.mixup_switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (paper.smoothing, paper.drop_path) == (0.1, 0.1)
    assert (paper.kd_loss, paper.task_loss_weight, paper.distill_loss_weight) == ("nkd", 0.0, 1.0)
    assert (paper.kd_temperature, paper.kd_gamma, paper.feature_loss) == (1.0, 1.0, "none")


def test_a_recipe_comes_back_from_yaml_the_same(tmp_path):
    mine = Recipe(
        data="npz:x: y",
        student_args=("width=0.5", "depths=[1,2]"),
        lr=None,
        kd_gamma=2,
        scale=(0.1, 0.9),
        aa="",
        seed=7,
        amp=True,
        weight_decay=5e-4,
    )
    file = tmp_path / "mine.yaml"
    file.write_text(recipes.to_yaml(mine))
    assert recipes.load(str(file)) == mine
    assert list(yaml.safe_load(file.read_text())) == [field.name for field in fields(Recipe)]


def test_the_plain_dict_of_a_recipe_comes_back_the_same():
    mine = Recipe(student_args=("width=0.5",), layer_decay=0.7)
    assert recipes.from_dict(recipes.to_dict(mine), "dict", Recipe()) == mine
    assert job.recipe_of(TrainOptions(seed=3)) == Recipe(seed=3)


def test_keys_left_out_keep_the_base(tmp_path):
    file = tmp_path / "short.yaml"
    file.write_text("epochs: 7\nwarmup-epochs: 2\n")
    assert recipes.load(str(file), Recipe(lr=0.3, epochs=9)) == Recipe(lr=0.3, epochs=7, warmup_epochs=2.0)


def test_flags_override_the_recipe_and_the_recipe_the_defaults():
    options = parse(["--recipe", "paper", "--lr-base", "1e-3", "--no-amp", "--mixup", "0", "--data", "d"])
    assert (options.lr_base, options.amp, options.mixup) == (1e-3, False, 0.0)
    assert (options.cutmix, options.kd_loss, options.data) == (1.0, "nkd", "d")


def test_flags_override_whatever_their_place():
    assert parse(["--epochs", "3", "--recipe", "paper"]).epochs == 3
    assert parse(["--epochs=3", "--recipe=paper", "-b", "64"]).batch == 64


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("--data-dir", "data"),
        ("--imgsz", "img_size"),
        ("-j", "workers"),
        ("-b", "batch"),
        ("--batch-size", "batch"),
        ("--grad-accum-steps", "grad_accum"),
        ("-o", "output"),
        ("-c", "recipe"),
        ("--config", "recipe"),
    ],
)
def test_the_usual_other_names_of_flags_work(alias, name):
    value = {"data": "7", "output": "7", "recipe": "paper"}.get(name, "7")
    assert str(getattr(parse([alias, value]), name)) == value


def test_an_unknown_key_is_answered_with_the_nearest(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("epochs: 3\nweigth_decay: 0.1\n")
    with pytest.raises(
        UsageError, match=r"wrong.yaml: unknown key 'weigth_decay'; did you mean weight_decay\?"
    ):
        recipes.load(str(file))


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"no recipe 'papper'; did you mean paper\?.*cifar10-cpu"):
        recipes.load("papper")


def test_an_unknown_flag_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"unknown flag --weigth-decay; did you mean --weight-decay\?"):
        parse(["--weigth-decay", "0.1"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("epochs: ten", "epochs is 'ten'; expected int"),
        ("epochs: 1.5", "epochs is 1.5; expected int"),
        ("epochs: true", "epochs is True; expected int"),
        ("lr: fast", "lr is 'fast'; expected a number"),
        ("lr: true", "lr is True"),
        ("weight_decay: null", "weight_decay is None; expected"),
        ("weight_decay: [1]", r"weight_decay is \[1\]"),
        ("amp: 1", "amp is 1; expected true or false"),
        ("amp: 'yes'", "amp is 'yes'; expected true or false"),
        ("kd_loss: dkt", "kd_loss is 'dkt'; expected one of kl, nkd, dkd"),
        ("losses: nkd", "losses is 'nkd'; expected a list"),
        ("losses: [{weight: 1}]", "losses has an entry {'weight': 1}; expected a name in it"),
        ("losses: [5]", "losses is 5; expected str"),
        ("student: 5", "student is 5; expected str"),
        ("student_args: width=1", "student_args is 'width=1'; expected a list"),
        ("scale: [0.1]", r"scale is \[0.1\]; expected a list"),
        ("scale: [a, b]", "scale is 'a'; expected a number"),
        ("- a\n- b", "expected lines of `key: value`"),
        ("a: [1", "not YAML"),
        ("lr: 2020-13-45", "not YAML"),
        ("lr: " + "[" * 100_000, "not YAML"),
        ("lr: " + "9" * 5000, "not YAML"),
        ("lr: " + "9" * 400, "lr is 999"),
        ("epochs: " + "9" * 400, "epochs 999"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(tmp_path, line, words):
    file = tmp_path / "wrong.yaml"
    file.write_text(line)
    with pytest.raises(UsageError, match=words) as caught:
        recipes.load(str(file))
    assert "\n" not in str(caught.value)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    file = tmp_path / "numbers.yaml"
    file.write_text("lr: 1e-3\nweight_decay: 1\nkd_temperature: 2\n")
    mine = recipes.load(str(file))
    assert (mine.lr, mine.weight_decay, mine.kd_temperature) == (0.001, 1.0, 2.0)
    assert type(mine.weight_decay) is float


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("width=0.5", {"width": 0.5}),
        ("dims=[16,32]", {"dims": [16, 32]}),
        ("gap=true", {"gap": True}),
        ("name=a=b", {"name": "a=b"}),
        ("layer_scale_init_value=1e-6", {"layer_scale_init_value": 1e-6}),
        ("rates=[1e-1,.5e1]", {"rates": [0.1, 5.0]}),
        ("name=1e", {"name": "1e"}),
        ("name=e1", {"name": "e1"}),
    ],
)
def test_key_value_pairs_are_read_as_yaml(pair, expected):
    assert recipes.key_values((pair,)) == expected


@pytest.mark.parametrize("pair", ["width", "=1", "dims=[1", "width=2020-13-45"])
def test_a_pair_that_is_none_is_shown(pair):
    with pytest.raises(UsageError) as caught:
        recipes.key_values((pair,))
    assert pair in str(caught.value)
    assert "\n" not in str(caught.value)


def test_losses_may_be_mappings_in_yaml(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "losses:\n- {name: nkd, temperature: 2.0}\n- {name: fd, weight: 0.5, stages: '2:3,4:4', target_norm:"
        " map}\n- at:weight=1000\n- rkd\n"
    )
    expected = (
        "nkd:temperature=2.0",
        'fd:weight=0.5,stages="2:3,4:4",target_norm="map"',
        "at:weight=1000",
        "rkd",
    )
    mine = recipes.load(str(file))
    assert mine.losses == expected
    saved = tmp_path / "args.yaml"
    saved.write_text(recipes.to_yaml(mine))
    assert recipes.load(str(saved)) == mine
