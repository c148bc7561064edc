"""Dynamic sparsity: exact counts, zeros that stay zeros, the same masks everywhere and again after
a resume.
"""

import copy
import io
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn import functional as F

from distill import models
from distill.training.sparsity import SparseTraining, by_gradient, drop, prunable, snip_counts
from runtime.errors import ArtifactError, GateError, UsageError

ROOT = Path(__file__).parents[3]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9),
}


class Net(nn.Module):
    """A little of everything: convolution, large and small depthwise kernels, norm, linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.strip = nn.Conv2d(8, 8, (9, 5), padding=(4, 2), groups=8)
        self.small = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))  # 4-D, but not a weight
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = self.norm(self.strip(x) + self.small(x)).relu() * self.scale
        return self.head(x.mean((2, 3)))


@pytest.fixture
def batch():
    torch.manual_seed(5)
    return torch.randn(16, 3, 12, 12), torch.arange(16) % 4


@pytest.fixture
def run(batch):
    """run(optimizer, ema=False, **settings) -> a started run; run.step() makes one step."""

    class Run:
        def __init__(
            self, optimizer="adamw", ema=False, model=None, start=True, channels_last=False, **settings
        ):
            torch.manual_seed(0)
            self.model = model or Net()
            if channels_last:
                self.model = self.model.to(memory_format=torch.channels_last)
            self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
            self.ema = ModelEmaV3(self.model, decay=0.9) if ema else None
            self.sparse = SparseTraining(
                self.model,
                self.optimizer,
                ema=self.ema.module if ema else None,
                **{"total_updates": 40, "update_every": 5, "sparsity": 0.5} | settings,
            )
            self.updates = 0
            if start:
                self.sparse.start(self.loss)

        def loss(self):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def step(self, count=1):
            for _ in range(count):
                self.optimizer.zero_grad(set_to_none=True)
                self.loss().backward()
                self.sparse.before_step(self.updates + 1)
                self.optimizer.step()
                self.updates += 1
                if self.ema:
                    self.ema.update(self.model)
                self.sparse.after_step(self.updates)
            return self

        def save(self):
            content = io.BytesIO()
            torch.save(
                {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "updates": self.updates,
                    "ema": self.ema.module.state_dict() if self.ema else None,
                    "sparse": self.sparse.state_dict(),
                },
                content,
            )
            content.seek(0)
            return content

        def resume(self, content):
            state = torch.load(content, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema:
                self.ema.module.load_state_dict(state["ema"])
            self.sparse.load_state_dict(state["sparse"])
            self.updates = state["updates"]
            return self

    return Run


def masks_of(run_):
    return {name: mask.clone() for name, mask in run_.sparse.masks.items()}


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


# how many weights each layer keeps


def test_snip_keeps_what_is_largest_over_all_layers_together():
    first = torch.tensor([9.0, 8, 7, 1])
    second = torch.tensor([[6.0, 5], [0.5, 0.4]])
    assert snip_counts([first, second], 0.5) == [3, 1]  # 9 8 7 | 6
    assert snip_counts([first, second], 0.625) == [3, 2]  # and 5
    assert snip_counts([first, second], 0.25) == [2, 0]


def test_equal_scores_at_the_end_of_the_ranking_are_shared_in_proportion():
    assert snip_counts([torch.tensor([5.0, 1, 1, 1, 1]), torch.tensor([1.0, 1, 1, 0.1, 0.1])], 0.5) == [
        3,
        2,
    ]  # 5, 4 of 7 ones


def test_a_layer_that_says_nothing_keeps_the_overall_density():
    assert snip_counts([torch.zeros(10), torch.tensor([4.0, 3, 2, 1])], 0.5) == [5, 2]
    assert snip_counts([torch.zeros(10), torch.zeros(4)], 0.5) == [5, 2]


def test_snip_refuses_scores_that_are_not_finite():
    with pytest.raises(GateError, match="first batch are not finite"):
        snip_counts([torch.tensor([1.0, math.nan])], 0.5)


def test_the_first_masks_have_snips_counts_worked_out_by_hand():
    """y = a . x1 + b . x2 with loss y: gradients are the inputs, so the scores are |weight * input|."""
    model = nn.ModuleDict({"a": nn.Linear(4, 1, bias=False), "b": nn.Linear(4, 1, bias=False)})
    with torch.no_grad():
        model["a"].weight.copy_(torch.tensor([[1.0, -2, 3, -4]]))  # scores 10 20 30 40
        model["b"].weight.copy_(torch.tensor([[1.0, 2, 3, 4]]))  # scores 1 2 3 40
    x1, x2 = torch.full((1, 4), 10.0), torch.tensor([[1.0, 1, 1, 10]])
    sparse = SparseTraining(model, torch.optim.SGD(model.parameters(), 0.1), total_updates=10, sparsity=0.5)
    sparse.start(lambda: (model["a"](x1) + model["b"](x2)).sum())
    assert sparse.density() == {"a.weight": 0.75, "b.weight": 0.25}  # 40 40 30 20
    assert sparse.overall_density == 0.5
    assert {name: int(mask.sum()) for name, mask in sparse.masks.items()} == {"a.weight": 3, "b.weight": 1}
    assert torch.equal(model["a"].weight != 0, sparse.masks["a.weight"])


def test_masks_are_drawn_by_chance_not_by_the_score(run):
    model = Net()
    with torch.no_grad():
        model.stem.weight.copy_(
            torch.arange(216.0).view(8, 3, 3, 3) / 216
        )  # the last ones would win any ranking
    mask = run(model=model).sparse.masks["stem.weight"].flatten()
    assert min(int(mask[:108].sum()), int(mask[108:].sum())) > 20


def test_a_layer_that_would_keep_nearly_all_is_left_dense(run):
    model = Net()
    with torch.no_grad():
        model.head.weight.mul_(1e4)
    started = run(model=model, sparsity=0.1)
    assert "head.weight" not in started.sparse.masks
    assert started.sparse.density()["head.weight"] == 1.0
    before = started.model.head.weight.clone()
    assert (started.step(6).model.head.weight != before).all()


def test_a_layer_without_any_weight_left_is_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 100))
    with torch.no_grad():
        model[0].weight.mul_(1e-9)
    sparse = SparseTraining(model, torch.optim.SGD(model.parameters(), 0.1), total_updates=9, sparsity=0.9)
    with pytest.raises(GateError, match=r"no weight of 0\.weight would be left.*lower --sparsity"):
        sparse.start(lambda: model(torch.ones(1, 2)).sum())


def test_starting_changes_nothing_but_weights(run, batch):
    """Neither batch statistics nor gradients nor the names in the state dict."""
    torch.manual_seed(0)
    fresh = Net().state_dict()
    started = run()
    state = started.model.state_dict()
    assert list(state) == list(fresh)
    assert all(torch.equal(state[key], fresh[key]) for key in fresh if key not in started.sparse.masks)
    assert all(p.grad is None for p in started.model.parameters())
    for name, mask in started.sparse.masks.items():
        assert torch.equal(state[name], fresh[name] * mask)


def test_all_linear_and_convolutional_weights_are_meant_and_nothing_else():
    assert list(prunable(Net())) == ["stem.weight", "strip.weight", "small.weight", "head.weight"]
    assert list(prunable(Net(), only_large=True)) == ["strip.weight"]


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto", "resnet18"]
)
def test_any_network_of_timm_can_be_masked(name):
    small = {"depths": (1, 1, 1, 1)} if "swin" in name else {"depth": 1} if "vit" in name else {}
    model = models.build(name, 4, small | models.size_argument(name, 32))
    keys = list(model.state_dict())
    sparse = SparseTraining(model, torch.optim.SGD(model.parameters(), 0.1), total_updates=9, sparsity=0.4)
    sparse.start(lambda: F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)))
    assert sparse.overall_density == pytest.approx(0.6, abs=0.01)
    assert list(model.state_dict()) == keys
    assert all("bias" not in name and "pos_embed" not in name for name in sparse.masks)
    assert sum(int((model.get_parameter(name) == 0).sum()) for name in sparse.masks) > 1000


# what is dropped and what grows


def test_the_smallest_under_the_mask_are_dropped_the_first_of_equal_ones():
    weight = torch.tensor([[0.0, -3.0, 0.5], [0.5, 0.1, -0.5]])
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert drop(weight, mask, 1).nonzero().tolist() == [[1, 1]]
    assert drop(weight, mask, 3).nonzero().tolist() == [[0, 2], [1, 0], [1, 1]]
    assert not drop(weight, mask, 0).any()


def test_growth_by_gradient_takes_the_largest_outside_the_mask():
    gradient = torch.tensor([[9.0, -7.0, 0.5], [3.0, math.inf, math.nan]])
    mask = torch.tensor([[True, False, False], [False, False, False]])
    assert by_gradient(gradient, mask, 2).nonzero().tolist() == [[0, 1], [1, 0]]
    assert by_gradient(gradient, mask, 3).nonzero().tolist() == [[0, 1], [0, 2], [1, 0]]
    assert by_gradient(gradient, mask, 4).nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [1, 1]]
    assert not by_gradient(gradient, mask, 0).any()


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_as_many_grow_as_are_dropped(run, growth, channels_last):
    mine = run(growth=growth, channels_last=channels_last, prune_rate=0.3)
    counts = {name: int(mask.sum()) for name, mask in mine.sparse.masks.items()}
    for _ in range(3):
        mine.step(4)
        before = masks_of(mine)
        weights = {name: weight.detach().clone() for name, weight in mine.sparse.weights.items()}
        mine.step()
        assert {name: int(mask.sum()) for name, mask in mine.sparse.masks.items()} == counts
        for name, mask in mine.sparse.masks.items():
            dropped = math.ceil(mine.sparse.rate(mine.updates) * counts[name])
            lost = int((before[name] & ~mask).sum())
            assert 0 < lost <= dropped  # one that was dropped may have grown again
            assert (
                int((mine.sparse.weights[name] != 0).sum()) == counts[name] - dropped
            )  # what grew is still 0
            stays = mine.sparse.weights[name].detach() != 0
            assert weights[name][stays].abs().min() > 0


def test_nothing_changes_between_the_updates(run):
    mine = run()
    before = masks_of(mine)
    assert same(before, masks_of(mine.step(4)))
    assert not same(before, masks_of(mine.step()))


def test_nothing_is_exchanged_at_the_last_step(run):
    mine = run(total_updates=10).step(9)
    before = masks_of(mine)
    assert same(before, masks_of(mine.step()))
    assert not mine.sparse.changes_at(0) and mine.sparse.changes_at(5)


def test_gradient_growth_uses_the_whole_gradient_of_that_step(run, batch):
    mine = run("sgd", growth="gradient", prune_rate=0.2).step(4)
    duplicate = copy.deepcopy(mine.model)
    F.cross_entropy(
        duplicate(batch[0]), batch[1]
    ).backward()  # the gradient of the fifth step, with nothing masked
    before = masks_of(mine)
    mine.step()
    for name, mask in mine.sparse.masks.items():
        size = duplicate.get_parameter(name).grad.abs()
        grown = mask & (mine.sparse.weights[name] == 0)
        left = ~mask
        assert grown.any() and size[grown].min() >= size[left].max()
        assert not (grown & before[name]).all()


def test_the_rate_follows_the_cosine():
    net = Net()
    sparse = SparseTraining(net, torch.optim.SGD(net.parameters(), 0.1), total_updates=1000, prune_rate=0.5)
    assert sparse.rate(0) == 0.5
    assert sparse.rate(500) == pytest.approx((0.5 + 0.005) / 2)
    assert sparse.rate(250) == pytest.approx(0.005 + 0.495 * (1 + math.sqrt(0.5)) / 2)
    assert sparse.rate(1000) == sparse.rate(2000) == 0.005
    net = nn.Linear(1, 1)  # torch's own schedule, which the published code uses
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000, 0.005)
    for _ in range(400):
        optimizer.step()
        schedule.step()
    assert sparse.rate(400) == pytest.approx(schedule.get_last_lr()[0])


# zeros


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_masked_weights_are_exactly_zero_after_every_step(run, optimizer, growth):
    mine = run(optimizer, growth=growth)
    for _ in range(12):
        mine.step()
        for name, mask in mine.sparse.masks.items():
            assert not mine.model.get_parameter(name)[~mask].any()
            for value in mine.optimizer.state[mine.model.get_parameter(name)].values():
                if value.shape == mask.shape:
                    assert not value[~mask].any(), "moments of weights that do not exist"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_grew_starts_at_zero_with_fresh_moments(run, optimizer):
    mine = run(optimizer, prune_rate=0.6).step(5)
    grown = {name: mask & (mine.model.get_parameter(name) == 0) for name, mask in mine.sparse.masks.items()}
    for name, new in grown.items():
        weight = mine.model.get_parameter(name)
        moments = [value for value in mine.optimizer.state[weight].values() if value.shape == weight.shape]
        assert new.any() and moments
        assert not any(value[new].any() for value in moments)
        assert all(value[mine.sparse.masks[name] & ~new].any() for value in moments)
    mine.step()
    assert all(mine.model.get_parameter(name)[new].any() for name, new in grown.items())


def test_living_weights_and_dense_parameters_train_as_without_masks(run, batch):
    """One SGD step: a living weight moves by exactly what the gradient at the masked weights says."""
    mine = run("sgd")
    duplicate = copy.deepcopy(mine.model)
    F.cross_entropy(duplicate(batch[0]), batch[1]).backward()
    optimizer = OPTIMIZERS["sgd"](duplicate.parameters())
    optimizer.step()
    mine.step()
    for name, parameter in mine.model.named_parameters():
        mask = mine.sparse.masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter[mask], duplicate.get_parameter(name)[mask])


def test_masks_hold_with_an_optimizer_that_moves_weights_without_gradient(run):
    class Drift(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                parameter.data.add_(0.01)

    mine = run(start=False)
    mine.optimizer = mine.sparse.optimizer = Drift(mine.model.parameters(), 0.1)
    mine.sparse.start(mine.loss)
    mine.step(3)
    for name, mask in mine.sparse.masks.items():
        assert not mine.model.get_parameter(name)[~mask].any()


def test_masks_hold_under_mixed_precision(run, batch):
    mine = run("adamw")
    for _ in range(6):
        mine.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = mine.loss()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        scaler.scale(loss).backward()
        mine.sparse.before_step(mine.updates + 1)
        scaler.step(mine.optimizer)
        mine.updates += 1
        mine.sparse.after_step(mine.updates)
    assert all(not mine.model.get_parameter(name)[~mask].any() for name, mask in mine.sparse.masks.items())
    assert mine.sparse.overall_density == pytest.approx(0.5, abs=0.01)


def test_clipping_sees_only_the_weights_that_exist(run):
    mine = run("sgd")
    mine.loss().backward()
    mine.sparse.before_step(1)
    for name, mask in mine.sparse.masks.items():
        gradient = mine.model.get_parameter(name).grad
        assert not gradient[~mask].any() and gradient[mask].any()


# the average


def test_averaged_weights_are_masked_and_newly_grown_ones_enter_with_their_value(run):
    mine = run("sgd", ema=True, growth="gradient").step(4)
    assert all(
        not mine.ema.module.get_parameter(name)[~mask].any() for name, mask in mine.sparse.masks.items()
    )
    before = {name: mine.ema.module.get_parameter(name).detach().clone() for name in mine.sparse.masks}
    mine.step()
    for name, mask in mine.sparse.masks.items():
        average, weight = mine.ema.module.get_parameter(name), mine.model.get_parameter(name)
        assert not average[~mask].any()
        assert not average[mask & (weight == 0)].any()  # grown, or dropped and grown again: it begins anew
    grown = {name: mask & (mine.model.get_parameter(name) == 0) for name, mask in mine.sparse.masks.items()}
    before = {name: mine.ema.module.get_parameter(name).detach().clone() for name in mine.sparse.masks}
    mine.step()
    for name, mask in mine.sparse.masks.items():
        average, weight = mine.ema.module.get_parameter(name), mine.model.get_parameter(name)
        assert grown[name].any() and weight[grown[name]].any()
        assert torch.equal(average[grown[name]], weight[grown[name]])
        old = mask & ~grown[name]
        assert torch.allclose(average[old], 0.9 * before[name][old] + 0.1 * weight[old], atol=1e-6)
    mine.step()
    for name in mine.sparse.masks:
        average, weight = mine.ema.module.get_parameter(name), mine.model.get_parameter(name)
        assert (average != weight)[grown[name]].any()  # from now on it is an average like the others


# the same masks again


def test_masks_depend_on_the_seed_alone(run):
    def masks(seed, noise):
        mine = run(seed=seed, start=False)
        torch.manual_seed(noise)  # the global generator has no part in it
        mine.sparse.start(mine.loss)
        return masks_of(mine)

    assert same(masks(1, 0), masks(1, 7))
    assert not any(torch.equal(a, b) for a, b in zip(masks(1, 0).values(), masks(2, 0).values(), strict=True))


def test_growth_does_not_touch_the_global_generator(run):
    mine = run().step(4)
    torch.manual_seed(3)
    mine.step()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("stop", [3, 5, 6, 10])
def test_a_resumed_run_gives_the_same_bits(run, growth, stop):
    """Also when stopped just at an exchange, before what grew has made its first step."""
    through = run(ema=True, growth=growth).step(13)
    stopped = run(ema=True, growth=growth).step(stop).save()
    resumed = run(ema=True, growth=growth, start=False).resume(stopped).step(13 - stop)
    assert same(masks_of(through), masks_of(resumed))
    assert same(through.model.state_dict(), resumed.model.state_dict())
    assert same(through.ema.module.state_dict(), resumed.ema.module.state_dict())


def test_saved_masks_take_an_eighth_of_a_byte_each(run):
    mine = run()
    saved = mine.sparse.state_dict()["masks"]
    assert {name: tuple(packed.shape) for name, packed in saved.items()} == {
        "stem.weight": (27,),
        "strip.weight": (45,),
        "small.weight": (25,),
        "head.weight": (4,),
    }


def test_masks_of_another_network_are_refused(run):
    saved = run().sparse.state_dict()
    other = nn.Sequential(nn.Linear(3, 3))
    sparse = SparseTraining(other, torch.optim.SGD(other.parameters(), 0.1), total_updates=5)
    with pytest.raises(ArtifactError, match="does not fit this network"):
        sparse.load_state_dict(saved)


def test_what_cannot_be_meant_is_refused():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for wrong in (
        {"sparsity": 0.0},
        {"sparsity": 1.0},
        {"prune_rate": 1.5},
        {"prune_rate": 0.1, "final_prune_rate": 0.2},
        {"update_every": 0},
        {"total_updates": 0},
        {"growth": "momentum"},
    ):
        with pytest.raises(UsageError, match="expected"):
            SparseTraining(net, optimizer, **{"total_updates": 10} | wrong)
    with pytest.raises(UsageError, match="no depthwise kernel of side 7 or more"):
        SparseTraining(models.build("resnet20", 4), optimizer, total_updates=10, only_large=True)


def test_the_line_for_a_person_has_the_figures(run):
    assert (
        run().sparse.summary()
        == "50.0% of 808 weights are 0, in 4 of 4 layers; every 5 steps some are dropped and others grow"
        " at random"
    )


@pytest.mark.slow
def test_every_rank_has_the_masks_of_rank_0(tmp_path):
    """Two processes that see different batches, so that SNIP and the gradients would disagree."""
    code = textwrap.dedent("""
        import sys, torch, torch.distributed as dist
        from torch import nn
        from distill.processes import together
        from distill.training.sparsity import SparseTraining
        torch.set_num_threads(1)
        rank = int(sys.argv[1])
        dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meet", rank=rank, world_size=2)
        together.enter(rank, 2)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        sparse = SparseTraining(
            model, optimizer, total_updates=9, update_every=2, sparsity=0.5, growth="gradient")
        torch.manual_seed(rank)
        loss = lambda: (model(torch.randn(4, 10)) ** 2).sum()
        sparse.start(loss)
        for update in range(1, 5):
            optimizer.zero_grad()
            loss().backward()
            sparse.before_step(update)
            optimizer.step()
            sparse.after_step(update)
        torch.save(sparse.state_dict(), f"{sys.argv[2]}/{rank}.pt")
        dist.destroy_process_group()
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True)["masks"] for rank in range(2))
    assert same(first, second)


def test_a_step_that_the_scaler_skips_after_an_exchange_does_not_hold_the_average_at_zero(run):
    mine = run("sgd", ema=True, growth="gradient").step(5)  # exchanged
    grown = {name: mask & (mine.model.get_parameter(name) == 0) for name, mask in mine.sparse.masks.items()}
    step, mine.optimizer.step = mine.optimizer.step, lambda: None  # GradScaler's answer to an overflow
    mine.step()
    assert all(not mine.model.get_parameter(name)[where].any() for name, where in grown.items())
    mine.optimizer.step = step
    mine.step()
    for name, where in grown.items():
        average, weight = mine.ema.module.get_parameter(name), mine.model.get_parameter(name)
        assert weight[where].any() and torch.equal(average[where], weight[where])
    mine.step()
    ends = {name: (mine.ema.module.get_parameter(name), mine.model.get_parameter(name)) for name in grown}
    assert any((average != weight)[grown[name]].any() for name, (average, weight) in ends.items())
