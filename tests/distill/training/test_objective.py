"""The sum of distillation losses: what flags and lists mean, what trains, what is kept, and which maps reach
which loss.
"""

import pytest
import torch
from torch.nn import functional as F

from distill import checkpoint as checkpoints
from distill import models
from distill.losses.base import Outputs
from distill.teacher import Teacher
from distill.training import objective as objectives
from distill.training.objective import Term, terms_of
from runtime.errors import UsageError


def test_flags_become_terms(recipe):
    assert terms_of(recipe(kd_loss="nkd", kd_temperature=2.0, kd_gamma=0.5, distill_loss_weight=0.7)) == [
        Term("nkd", 0.7, {"temperature": 2.0, "gamma": 0.5})
    ]
    assert terms_of(
        recipe(
            kd_loss="dkd",
            kd_args=("alpha=1", "beta=8", "mixed_labels=both"),
            feature_loss="fd",
            feature_weight=0.5,
            feature_stages="2:3",
            feature_args=("target_norm=map",),
        )
    ) == [
        Term("dkd", 1.0, {"alpha": 1, "beta": 8, "mixed_labels": "both"}),
        Term("fd", 0.5, {"target_norm": "map"}, "2:3"),
    ]
    assert [term.name for term in terms_of(recipe(kd_loss="none", feature_loss="rkd"))] == ["rkd"]


def test_a_setting_of_another_loss_is_left_out_when_it_came_by_its_flag_and_refused_when_given_by_name(
    recipe,
):
    assert terms_of(recipe(kd_loss="kl", kd_gamma=2.0, kd_temperature=3.0)) == [
        Term("kl", 1.0, {"temperature": 3.0})
    ]
    assert terms_of(recipe(kd_loss="binary_kl", kd_temperature=3.0)) == [Term("binary_kl")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kl", Term("kl")),
        ("nkd:temperature=2,weight=0.5", Term("nkd", 0.5, {"temperature": 2})),
        ("fd:weight=0,stages=2:3,4:4,target_norm=map", Term("fd", 0.0, {"target_norm": "map"}, "2:3,4:4")),
        ('fd:stages="2:3,4:4"', Term("fd", 1.0, {}, "2:3,4:4")),
        ("fd:stages=1:20", Term("fd", 1.0, {}, "1:20")),  # 80 seconds to YAML
        ("at:weight=1e3", Term("at", 1000.0)),
        ("mgd:weight=3E-05,alpha_mgd=2e-5", Term("mgd", 3e-5, {"alpha_mgd": 2e-5})),
    ],
)
def test_a_list_says_the_same(recipe, text, expected):
    assert terms_of(recipe(losses=(text,))) == [expected]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nkt", r"no loss called 'nkt'; did you mean nkd\?"),
        ("kl:weight=-1", "weight -1; expected a number, 0 or more"),
        ("kl:weight=true", "weight True; expected a number"),
        ("kl:weight=.inf", "weight inf; expected a number"),
        ("kl:temperature", "'temperature': expected KEY=VALUE"),
        ("kl:stages=last", "kl compares logits and has no stages"),
    ],
)
def test_a_wrong_entry_is_shown(recipe, text, words):
    with pytest.raises(UsageError, match=words):
        terms_of(recipe(losses=(text,)))


def test_a_wrong_setting_is_refused_before_training(trainer, teacher):
    with pytest.raises(UsageError, match="loss kl has no setting 'temprature'; did you mean temperature"):
        trainer(teacher=teacher(), kd_args=("temprature=2",))


def test_the_total_is_the_weighted_sum_and_each_loss_is_recorded(trainer, teacher):
    mine = trainer(
        teacher=teacher(),
        losses=("kl:weight=0.25,temperature=2", "at:weight=3", "kl:weight=0.5"),
        task_loss_weight=0.1,
    )
    batch = next(mine.train_loader.epoch(0))
    found = mine.losses(batch.images, batch.labels)
    assert mine.objective.names == ["kl", "at", "kl_2"]
    assert found.distill.item() == pytest.approx(
        sum(w * v.item() for w, v in zip((0.25, 3, 0.5), found.each, strict=True))
    )
    assert found.total.item() == pytest.approx(found.distill.item() + 0.1 * found.task.item())
    with torch.no_grad():
        images = batch.images.contiguous(memory_format=torch.channels_last)
        p, q = (mine.teacher.model(images) / 2).log_softmax(1), (mine.model(images) / 2).log_softmax(1)
    assert found.each[0].item() == pytest.approx(
        4 * F.kl_div(q, p, log_target=True, reduction="batchmean").item(), rel=1e-4
    )
    record = mine.fit().to_dict()
    assert {"train_kl_loss", "train_at_loss", "train_kl_2_loss"} <= set(record)
    weighted = 0.25 * record["train_kl_loss"] + 3 * record["train_at_loss"] + 0.5 * record["train_kl_2_loss"]
    assert record["train_distill_loss"] == pytest.approx(weighted)


def test_every_loss_gets_the_maps_of_its_own_stages(trainer, teacher, monkeypatch):
    mine = trainer(teacher=teacher(), losses=("at:stages=0:1", "kl", "at:stages=last", "at:stages=0:0,2:2"))
    seen = []
    for index, loss in enumerate(mine.objective.losses):
        if isinstance(loss, torch.nn.Module):
            monkeypatch.setattr(
                loss,
                "forward",
                lambda s, t, y, index=index: (
                    seen.append((index, s.features, t.features)) or s.logits.sum() * 0
                ),
            )
    batch = next(mine.train_loader.epoch(0))
    mine.losses(batch.images, batch.labels)
    channels = {
        index: [(a.shape[1], b.shape[1]) for a, b in zip(ours, theirs, strict=True)]
        for index, ours, theirs in seen
    }
    assert channels == {0: [(4, 8)], 2: [(16, 16)], 3: [(4, 4), (16, 16)]}


def test_projectors_learn_with_the_student_and_stay_out_of_its_files(trainer, teacher, same_weights):
    mine = trainer(
        teacher=teacher(), losses=("kl", "fitnets:weight=1,stages=1:2"), epochs=2, weight_decay=0.1
    )
    before = {name: value.clone() for name, value in mine.objective.state_dict().items()}
    frozen = {name: value.clone() for name, value in mine.teacher.model.state_dict().items()}
    mine.fit()
    after = mine.objective.state_dict()
    learned = {
        name for name, parameter in mine.objective.projectors.named_parameters() if parameter.requires_grad
    }
    assert learned and all(not torch.equal(before[name], after[name]) for name in learned)
    same_weights(mine.teacher.model.state_dict(), frozen)
    best, last = (checkpoints.load(mine.task.folder / f"{name}.pth") for name in ("best", "last"))
    assert set(best.state_dict) == set(last.state_dict) == set(mine.model.state_dict()) and best.state is None
    same_weights(last.state["projectors"], after)


def test_biases_and_norms_of_projectors_do_not_decay(trainer, teacher):
    mine = trainer(teacher=teacher(), kd_loss="none", feature_loss="fitnets", weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in mine.optimizer.param_groups for p in group["params"]}
    assert {decay[id(p)] for p in mine.objective.parameters() if p.ndim > 1} == {0.1}
    assert {decay[id(p)] for p in mine.objective.parameters() if p.ndim < 2} == {0.0}
    assert len(decay) == len(list(mine.model.parameters())) + len(mine.objective.parameters())


def test_a_resumed_run_continues_its_projectors(trainer, teacher, same_weights):
    settings = {"losses": ("nkd", "fd:weight=0.5", "mgd"), "epochs": 2}
    whole = trainer("whole", teacher=teacher(), **settings)
    whole.fit()
    first = trainer("parts", teacher=teacher(), **settings)
    for batch in list(first.train_loader.epoch(0))[:3]:
        first.step([batch])
        first.step_in_epoch += 1
    first.save()
    second = trainer("parts", teacher=teacher(), **settings)
    second.resume(second.task.folder / "last.pth")
    second.fit()
    same_weights(second.model.state_dict(), whole.model.state_dict())
    same_weights(second.objective.state_dict(), whole.objective.state_dict())


def test_clipping_counts_the_projectors_too(trainer, teacher):
    mine = trainer(teacher=teacher(), kd_loss="none", feature_loss="fitnets", clip_grad=1e-3)
    mine.step([next(mine.train_loader.epoch(0))])
    together = torch.stack([p.grad.norm() for p in mine.trained if p.grad is not None]).norm()
    assert together.item() == pytest.approx(1e-3, rel=1e-3)


def test_taps_leave_the_logits_as_they_are(trainer, teacher):
    plain, tapped = trainer("a", teacher=teacher()), trainer("b", teacher=teacher(), feature_loss="at")
    batch = next(plain.train_loader.epoch(0))
    with torch.no_grad():
        plain.model.eval(), tapped.model.eval()
        assert torch.equal(
            plain.objective.student(batch.images).logits, tapped.objective.student(batch.images).logits
        )
        assert torch.equal(plain.teacher(batch.images).logits, tapped.teacher(batch.images).logits)


def test_what_is_matched_and_where_a_loss_degenerates_is_said(trainer, teacher):
    notes = trainer(teacher=teacher(), losses=("dist", "at"), batch=1).objective.notes
    assert sum(note.startswith("at: stage") for note in notes) == 3
    assert any("batch" in note and not note.startswith("at") for note in notes)


def test_a_zero_classifier_is_refused_where_the_loss_divides_by_its_spread(trainer, teacher, monkeypatch):
    def zeroed(*arguments, **settings):
        network = build(*arguments, **settings)
        torch.nn.init.zeros_(network.linear.weight), torch.nn.init.zeros_(network.linear.bias)
        return network

    its, build = teacher(), models.build
    monkeypatch.setattr(models, "build", zeroed)
    with pytest.raises(UsageError, match="eps"):
        trainer(teacher=its, kd_loss="lskd")


def test_outputs_without_features_pass_through():
    assert objectives._part(Outputs(torch.zeros(1, 2)), slice(0, 0)).features == ()


@pytest.mark.parametrize("loss", ["dist", "lskd"])
def test_a_deep_fresh_student_is_not_taken_for_a_constant_one(trainer, teacher, loss):
    """In eval mode the statistics of its fresh batch norms normalize nothing, and its logits all
    but vanish.
    """
    mine = trainer(teacher=teacher(), student="lcnet_050", student_args=(), kd_loss=loss)
    with torch.no_grad():
        assert mine.model.eval()(torch.randn(2, 3, 16, 16)).std() < 1e-3
    assert mine.objective.losses


def test_the_first_logits_are_looked_at_without_a_trace(same_weights):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.Dropout(0.5),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 14 * 14, 4),
    ).eval()
    before, draws = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    found = objectives._first_logits(
        model, torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    )
    assert not found.requires_grad and not model.training
    same_weights(model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), draws)


def test_a_loss_without_the_teachers_maps_takes_all_of_the_students_stages_whatever_the_teacher_is(trainer):
    spec = models.preprocess_of("resnet20", 16)
    vit = models.build(
        "vit_tiny_patch16_224",
        4,
        {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3},
    )
    mine = trainer(teacher=Teacher(vit, spec, spec, torch.device("cpu")), losses=("ofa_stages", "kl"))
    assert len(mine.objective.losses[0].branches) == 3 and mine.teacher.taps is None
    assert sum("learns from teacher logits" in note for note in mine.objective.notes) == 3
    batch = next(mine.train_loader.epoch(0))
    assert len(mine.losses(batch.images, batch.labels).each) == 2
    both = trainer("both", teacher=mine.teacher, losses=("fd", "ofa_stages:stages=1", "at:stages=0:1"))
    assert [tuple(part.stop - part.start for part in parts) for parts in both.objective._parts] == [
        (1, 1),
        (1, 0),
        (1, 1),
    ]
    assert both.losses(batch.images, batch.labels).total.isfinite()


def test_the_memory_of_a_loss_is_said_before_training(trainer, teacher, monkeypatch):
    monkeypatch.setattr("distill.losses.feature.rkd.LARGE", 4 * 8 * 8 * (6 * 16 + 8))  # batch 8, 16 channels
    assert any(
        note.startswith("rkd: the differences")
        for note in trainer(teacher=teacher(), losses=("rkd",)).objective.notes
    )
