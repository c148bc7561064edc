"""Merging for inference: equal outputs for every family, only proven pairs are folded, and a wrong merge is
refused.
"""

import copy

import pytest
import timm
import torch
from stirring import stirred
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn
from torch.nn import functional as F

from distill import models
from distill.models.depthwise import DepthwiseConv2d
from distill.models.merge import foldable, reparameterize, require_equal
from runtime.errors import GateError

UNIREPLKNET = {"depths": (1, 1, 2, 1), "dims": (8, 8, 12, 16), "kernel_sizes": (3, 7, (13, 3), 9)}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_norms(network):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


class Pair(nn.Module):
    """A convolution and a batch norm that read one another as `forward` says: forward(self, x) -> Tensor."""

    def __init__(self, forward, conv=None, bn=None):
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 4, 3, bias=False)
        self.bn = bn or nn.BatchNorm2d(4)
        self.way = forward

    def forward(self, x):
        return self.way(self, x)


def plain(self, x):
    return self.bn(self.conv(x))


def test_a_convolution_takes_the_batch_norm_worked_out_by_hand():
    network = Pair(plain, nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    with torch.no_grad():
        for tensor, value in (
            (network.conv.weight, 2.0),
            (network.conv.bias, 11.0),
            (network.bn.running_mean, 3.0),
            (network.bn.running_var, 4.0),
            (network.bn.weight, 5.0),
            (network.bn.bias, 7.0),
        ):
            tensor.fill_(value)
    merged = reparameterize(network)
    assert merged.conv.weight.item() == 2 * 5 / 2 and merged.conv.bias.item() == (11 - 3) * 5 / 2 + 7
    assert isinstance(merged.bn, nn.Identity)


def test_a_linear_layer_takes_the_batch_norm_behind_it():
    network = stirred(
        nn.Sequential(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4, affine=False), nn.ReLU())
    ).double()
    merged, x = reparameterize(network), noise(6, 5).double()
    assert batch_norms(merged) == 0 and torch.allclose(merged(x), network(x), atol=1e-12)


FAMILIES = {
    "repvgg_a0": (32, 0),
    "mobileone_s0": (32, 0),
    "resnet18": (32, 0),
    "mobilenetv3_small_050": (32, 0),
    "convnext_atto": (32, 0),
    "resnet20": (16, 0),
    "fastvit_t8": (64, 0),
    "repvit_m0_9": (32, 0),
    "repghostnet_050": (32, 0),
    "tf_efficientnet_b0": (32, 0),  # padding that depends on the size
    "levit_128s": (224, 0),  # keeps its attention biases between calls
    "densenet121": (32, 62),  # 62 of its 121 come before their convolution, and stay
}
"""{network: (image size, batch norms that no layer can take)}"""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_the_same_merged(name):
    size, stay = FAMILIES[name]
    torch.manual_seed(0)
    network = stirred(models.build(name, 5))
    merged = reparameterize(network).double()
    x = noise(2, 3, size, size).double()
    with torch.no_grad():
        wanted, found = network.double()(x), merged(x)
    assert (
        (found - wanted).abs().max() / wanted.std()
    ).item() < 1e-5  # in float64: merged weights are rounded, nothing else
    assert batch_norms(merged) == stay


OURS = {
    "slak_tiny": (
        {"depths": (1, 1, 2), "dims": (8, 8, 12), "kernel_sizes": (13, 11, 7), "width_factor": 1.0},
        0,
    ),
    "slak_tiny_k7": ({"depths": (1, 1), "dims": (8, 12)}, 0),
    # a RepLKBlock and a ConvFFN begin with batch norm: two per pair stay, and the last one
    "replknet_31b": ({"depths": (1, 2), "channels": (8, 12), "kernel_sizes": (13, 7)}, 7),
    "unireplknet_a": (UNIREPLKNET, 0),
}
"""{network: (arguments of a small one, batch norms that no layer can take)}"""


@pytest.mark.parametrize("name", OURS)
def test_our_families_compute_the_same_merged(name):
    arguments, stay = OURS[name]
    network = stirred(models.build(name, 5, arguments), weights=True).double()
    merged, x = reparameterize(network), noise(2, 3, 64, 64).double()
    with torch.no_grad():
        assert torch.allclose(merged(x), network(x), rtol=0, atol=1e-12 * network(x).std().item())
    assert batch_norms(merged) == stay < batch_norms(network)
    assert list(reparameterize(network, fold_batch_norm=False).state_dict()) == list(
        models.build(name, 5, arguments | {"deploy": True}).state_dict()
    )


def test_a_network_for_features_only_is_merged_inside():
    features = timm.create_model("unireplknet_a", features_only=True, **UNIREPLKNET)
    assert batch_norms(features) and batch_norms(reparameterize(features)) == 0


def test_blocks_are_merged_in_eval_mode():
    class Fuses(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def fuse(self):
            return nn.utils.fusion.fuse_conv_bn_eval(self.conv, self.bn)  # refuses in training mode

    assert isinstance(reparameterize(nn.Sequential(Fuses()).train())[0], nn.Conv2d)


def test_the_original_is_untouched_and_inplace_is_the_same_object():
    network = stirred(models.build("repvgg_a0", 5)).train()
    before = copy.deepcopy(network.state_dict())
    merged = reparameterize(network)
    assert network.training and not any(m.training for m in merged.modules())
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert reparameterize(network, inplace=True) is network and batch_norms(network) == 0


def test_without_folding_only_blocks_are_merged():
    assert batch_norms(reparameterize(models.build("resnet18", 5), fold_batch_norm=False)) == 20
    assert batch_norms(reparameterize(models.build("repvgg_a0", 5), fold_batch_norm=False)) == 0


def test_a_large_depthwise_convolution_is_folded_and_an_activation_stays():
    network = stirred(Pair(plain, DepthwiseConv2d(4, 9, bias=False), BatchNormAct2d(4))).double()
    merged, x = reparameterize(network), noise(2, 4, 8, 8).double()
    assert batch_norms(merged) == 0 and isinstance(merged.conv, DepthwiseConv2d)
    assert torch.allclose(merged(x), network(x), atol=1e-12) and merged(x).min() == 0


def mask(self, x, keep=None):
    return self.bn(self.conv(x)) if keep is None else self.conv(x) * keep


def decides(self, x):
    return self.inner(x) if x.sum() > 0 else -self.inner(x)


class Optional(Pair):
    def forward(self, x, keep=None):
        return mask(self, x, keep)


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Pair(plain)

    def forward(self, x):
        return decides(self, x)


@pytest.mark.parametrize(
    "network", [Optional(plain), Decides()], ids=["an optional argument", "a choice by the data"]
)
def test_code_that_chooses_is_followed_where_it_can_be(network):
    stirred(network)
    merged = reparameterize(network)
    assert batch_norms(merged) == 0
    for x in (noise(2, 3, 8, 8), noise(2, 3, 8, 8) - 1, noise(2, 3, 8, 8) + 1):
        assert torch.allclose(merged(x), network(x), atol=1e-5)


class Shared(nn.Module):
    """One batch norm under two names, in two children of a network that cannot be traced."""

    def __init__(self):
        super().__init__()
        bn = nn.BatchNorm2d(3)
        self.a, self.b = (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), bn) for _ in range(2))

    def forward(self, x):
        return self.a(x) + self.b(x) if x.sum() > 0 else self.b(self.a(x))


def hooked():
    network = Pair(plain)
    network.conv.register_forward_hook(lambda module, inputs, output: output * 2)
    return network


def pruned():
    from torch.nn.utils import prune

    network = Pair(plain)
    prune.l1_unstructured(network.conv, "weight", amount=0.5)
    with torch.no_grad():
        network(
            noise(2, 3, 8, 8)
        )  # its weight is computed anew before every call; one with a graph cannot be copied
    return network


LEFT = {
    "another reader": Pair(lambda self, x: self.bn(y := self.conv(x)) + y),
    "the output too": Pair(lambda self, x: (y := self.conv(x), self.bn(y))),
    "an activation between": Pair(lambda self, x: self.bn(F.relu(self.conv(x)))),
    "batch norm first": Pair(lambda self, x: self.conv(self.bn(x)), nn.Conv2d(4, 4, 3)),
    "neighbors by name only": Pair(lambda self, x: self.conv(x) + self.bn(x), nn.Conv2d(4, 4, 1)),
    "a convolution used twice": Pair(lambda self, x: self.bn(self.conv(self.conv(x))), nn.Conv2d(4, 4, 1)),
    "a batch norm used twice": Pair(lambda self, x: self.bn(F.relu(self.bn(self.conv(x))))),
    "a weight read by itself": Pair(lambda self, x: self.bn(self.conv(x)) * self.conv.weight.sum()),
    "no statistics": Pair(plain, bn=nn.BatchNorm2d(4, track_running_stats=False)),
    "another use of the weight": Pair(plain, StdConv2d(3, 4, 3)),
    "transposed": Pair(plain, nn.ConvTranspose2d(3, 4, 3)),
    "a hook": hooked(),
    "pruning": pruned(),
    "one module in two places": Shared(),
}


@pytest.mark.parametrize("why", LEFT)
def test_what_is_not_a_plain_pair_is_left_alone(why):
    network = LEFT[why].eval()
    channels = 4 if why in ("batch norm first", "neighbors by name only", "a convolution used twice") else 3
    before = batch_norms(network)
    assert foldable(network) == []
    merged, x = reparameterize(network), noise(2, channels, 8, 8)
    assert batch_norms(merged) == before > 0
    torch.testing.assert_close(merged(x), network(x), rtol=0, atol=0)


def test_looking_for_pairs_leaves_no_trace_in_the_network():
    class Caches(Pair):
        def forward(self, x):
            self.seen = x
            return plain(self, x)

    network = Caches(plain).eval()
    assert foldable(network) == [("conv", "bn")] and not hasattr(network, "seen")


@pytest.mark.parametrize("name", ["resnet18", "mobileone_s0", "unireplknet_a"])
def test_a_right_merge_is_found_equal(name):
    torch.manual_seed(0)
    network = stirred(models.build(name, 5, UNIREPLKNET if name == "unireplknet_a" else {}))
    assert 0 < require_equal(network, reparameterize(network), (3, 32, 32)) < 1e-4


def forget_a_mean(network):
    network.stages[1][0].dwconv.dil_bn_k5_1.running_mean.zero_()


def move_a_kernel(network):
    conv = network.stages[1][0].dwconv.dil_conv_k3_2
    conv.weight.copy_(conv.weight.roll(1, -1))


def forget_a_bias(network):
    network.stages[2][1].act[1].beta.zero_()


def lose_padding(network):  # RepLKNet issue 48
    conv = network.stages[3][0].dwconv.dil_conv_k5_1
    conv.weight.zero_()


@pytest.mark.parametrize("tamper", [forget_a_mean, move_a_kernel, forget_a_bias, lose_padding])
def test_a_wrong_merge_is_refused(tamper):
    torch.manual_seed(0)
    network = stirred(models.build("unireplknet_a", 5, UNIREPLKNET), weights=True)
    wrong = copy.deepcopy(network)
    with torch.no_grad():
        tamper(wrong)
    with pytest.raises(
        GateError, match=r"merged UniRepLKNet is not the same .* differs by .* at most 0\.0001"
    ) as error:
        require_equal(network, reparameterize(wrong), (3, 32, 32))
    assert "\n" not in str(error.value)


def test_a_head_of_zeros_does_not_hide_a_wrong_map():
    network = stirred(models.build("resnet18", 5))
    nn.init.zeros_(network.fc.weight)
    wrong = reparameterize(network)
    assert require_equal(network, wrong, (3, 32, 32)) < 1e-4
    with torch.no_grad():
        wrong.layer4[1].conv2.bias.add_(0.1)
    with pytest.raises(GateError, match="its feature map differs"):
        require_equal(network, wrong, (3, 32, 32))


def test_rounding_that_a_network_amplifies_is_told_from_a_wrong_merge():
    network = stirred(Pair(lambda self, x: (plain(self, x) + 3e4) - 3e4))
    same, x = Pair(plain, network.conv, network.bn).eval(), noise(2, 3, 8, 8)
    with torch.no_grad():
        assert (same(x) - network(x)).abs().max() / network(x).std() > 5e-4  # float32 has four decimals there
    assert require_equal(network, same, (3, 8, 8)) < 1e-6
    wrong = Pair(lambda self, x: plain(self, x) + 0.01, network.conv, network.bn)
    with pytest.raises(GateError, match=r"its output differs by 0\.0"):
        require_equal(network, wrong, (3, 8, 8))


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (lambda self, x: self.bn(self.conv(x)) * 0, "is constant"),
        (lambda self, x: self.bn(self.conv(x)) / 0, "is not finite"),
    ],
)
def test_what_cannot_be_compared_is_not_called_equal(way, said):
    network = Pair(way).eval()
    with pytest.raises(GateError, match=said):
        require_equal(network, reparameterize(network), (3, 8, 8))


def test_a_merged_network_that_does_not_run_is_refused():
    network = Pair(lambda self, x: plain(self, x) + self.bn.running_mean.sum()).eval()
    with pytest.raises(
        GateError, match=r"merged Pair does not run \(.*running_mean.*\)\. Use the network unmerged"
    ) as error:
        require_equal(network, reparameterize(network), (3, 8, 8))
    assert "\n" not in str(error.value)


def test_outputs_of_another_shape_are_refused_and_lists_are_compared_one_by_one():
    several = stirred(Pair(lambda self, x: {"maps": [x, plain(self, x)]}))
    assert require_equal(several, reparameterize(several), (3, 8, 8)) < 1e-5
    wrong = Pair(lambda self, x: {"maps": [x, plain(self, x) + 0.1]}, several.conv, several.bn)
    with pytest.raises(GateError, match="its output maps 1 differs"):
        require_equal(several, wrong, (3, 8, 8))
    with pytest.raises(GateError, match=r"its output is \(2, 4, 6, 6\), expected \(2, 3, 6, 6\)"):
        require_equal(Pair(lambda self, x: plain(self, x)[:, :3]), Pair(plain), (3, 8, 8))


def test_the_check_leaves_every_mode_as_it_was():
    network = models.build("resnet18", 5).train()
    network.bn1.eval()
    statistics = network.layer1[0].bn1.running_mean.clone()
    require_equal(network, reparameterize(network), (3, 32, 32))
    assert network.training and network.layer1[0].bn1.training and not network.bn1.training
    assert torch.equal(network.layer1[0].bn1.running_mean, statistics)
