"""export.graph.from_torch: from a torch network to an fp32 ONNX graph."""

import exports_once
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from export.graph import from_torch, macs
from runtime.artifact import Metadata, check_seal, read_map
from runtime.errors import ArtifactError, GateError


def run(model, batch):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"images": batch}
    )[0]


class Tiny(nn.Module):
    """A convolution and batch norm with one channel, then the mean: every number can be worked out
    by hand.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(1, eps=0.5)  # with the variance 4, whose root is 2
        self.pool = nn.AdaptiveAvgPool2d(1)
        with torch.no_grad():
            self.conv.weight.fill_(2.0)
            self.bn.running_mean.fill_(3.0)
            self.bn.running_var.fill_(3.5)
            self.bn.weight.fill_(5.0)
            self.bn.bias.fill_(7.0)

    def forward(self, x):
        return self.pool(self.bn(self.conv(x))).flatten(1)


@pytest.fixture(scope="module")
def tiny_onnx():
    return from_torch.to_onnx(from_torch.merge(Tiny()), (3, 4, 4))


def test_batch_norm_is_folded_into_the_weight_worked_out_by_hand(tiny_onnx):
    assert not any(node.op_type == "BatchNormalization" for node in tiny_onnx.graph.node)
    weight, bias = (
        onnx.numpy_helper.to_array(t)
        for name in (".weight", "")
        for t in tiny_onnx.graph.initializer
        if t.data_type == 1 and (t.name == "conv.weight") == bool(name)
    )
    assert weight.ravel() == pytest.approx([2 * 5 / 2] * 3)  # weight x gamma / sqrt(variance + eps)
    assert bias.ravel() == pytest.approx([7 - 3 * 5 / 2])  # beta - mean x gamma / sqrt(variance + eps)


def test_interface_is_named_fixed_in_size_and_dynamic_in_batch(tiny_onnx):
    (images,), (logits,) = tiny_onnx.graph.input, tiny_onnx.graph.output
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 3, 4, 4]
    assert (images.name, logits.name) == ("images", "logits")
    assert [e.version for e in tiny_onnx.opset_import] == [19]
    for n in (1, 5):
        assert run(tiny_onnx, np.ones((n, 3, 4, 4), np.float32)) == pytest.approx(
            np.full((n, 1), (6 - 3) / 2 * 5 + 7)
        )


def test_pooling_takes_no_detour_over_the_batch(convnext_onnx):
    kinds = {node.op_type for node in convnext_onnx.graph.node}
    assert not kinds & {
        "Gather",
        "Range",
        "Shape",
    }  # the exporter's form of AdaptiveAvgPool2d before a LayerNorm


def test_merged_branches_compute_the_same_with_fewer_layers(repvgg):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    merged = from_torch.merge(repvgg)
    with torch.inference_mode():
        assert torch.allclose(merged(images), repvgg(images), atol=1e-3 * float(repvgg(images).abs().max()))
    assert any(isinstance(m, nn.BatchNorm2d) for m in repvgg.modules())  # the original is untouched
    assert not any(isinstance(m, nn.BatchNorm2d) for m in merged.modules())
    assert sum(isinstance(m, nn.Conv2d) for m in merged.modules()) == 22


@pytest.fixture(scope="module")
def unireplknet():
    """A tiny UniRepLKNet in which nothing is at its initial value, so that a wrong merge shows."""
    from distill import models

    arguments = {"depths": (1, 1), "dims": (8, 12), "kernel_sizes": (3, 13), "stem_stride": 2}
    network, generator = models.build("unireplknet_a", 5, arguments), torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            low, high = (0.5, 2.0) if name.endswith("running_var") else (-0.5, 0.5)
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return network.eval()


def test_a_large_kernel_becomes_one_plain_convolution_that_computes_the_same(unireplknet):
    model = from_torch.to_onnx(from_torch.merge(unireplknet), (3, 32, 32))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = unireplknet(images).numpy()
    assert np.abs(run(model, images.numpy()) - wanted).max() <= 1e-4 * np.abs(wanted).max()
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    kernels = {node.name: shapes[node.input[1]][2:] for node in model.graph.node if node.op_type == "Conv"}
    assert {
        name: k[0] for name, k in kernels.items() if name.startswith("stages") and ".se." not in name
    } == {"stages.0.0.dwconv": 3, "stages.1.0.dwconv.lk_origin": 13}
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization", "DFT", "Gather"}


def test_batch_norm_stays_for_the_count_of_parameters_until_the_graph_is_made(unireplknet):
    from distill import models

    student = models.build("resnet20", 10)
    assert from_torch.parameters(from_torch.merge(student)) == 269_722
    merged = from_torch.parameters(from_torch.merge(unireplknet))
    assert merged < sum(p.numel() for p in unireplknet.parameters()) - 12 * (
        5 * 5 + 7 * 7 + 3 * 3 * 3
    )  # no dilated branches


def test_layers_are_named_after_their_module_and_uniquely(student_onnx, convnext_onnx):
    names = [node.name for node in student_onnx.graph.node]
    assert {"conv1", "layer1.0.conv1", "layer3.2.conv2", "linear"} <= set(names) and len(set(names)) == len(
        names
    )
    assert "stages.0.blocks.0.mlp.fc2" in [
        node.name for node in convnext_onnx.graph.node
    ]  # layer scale folded into it


def test_parameters_and_macs_of_resnet20_equal_the_published_and_the_counted():
    from distill import models

    pixels = {16: 32 * 32, 32: 16 * 16, 64: 8 * 8}
    layers = ((3, 16), *[(16, 16)] * 6, (16, 32), *[(32, 32)] * 5, (32, 64), *[(64, 64)] * 5)
    by_hand = sum(9 * inputs * outputs * pixels[outputs] for inputs, outputs in layers) + 64 * 10
    merged = from_torch.merge(models.build("resnet20", 10))
    assert from_torch.parameters(merged) == 269_722
    assert macs.total(from_torch.to_onnx(merged, (3, 32, 32))) == by_hand


def test_export_is_the_same_bytes_every_time(tiny_onnx):
    again = from_torch.to_onnx(from_torch.merge(Tiny()), (3, 4, 4))
    assert again.SerializeToString(deterministic=True) == tiny_onnx.SerializeToString(deterministic=True)


def test_what_tests_remember_is_told_apart_by_weights_size_and_opset(tiny_onnx):
    asked = []

    def export(merged, size, opset):
        asked.append((merged, size, opset))
        return tiny_onnx

    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    wanted = [(one, (3, 4, 4), 19), (other, (3, 4, 4), 19), (one, (3, 4, 8), 19), (one, (3, 4, 4), 20)]
    for _ in range(2):
        for each in wanted:
            assert exports_once.remembering(export)(*each) == tiny_onnx
    assert asked == wanted


def test_metadata_reads_back_and_replaces_what_was_there(tiny_onnx):
    model = onnx.ModelProto()
    model.CopyFrom(tiny_onnx)
    onnx.helper.set_model_props(model, {**Metadata(model="old").to_map(), "theirs": "x"})
    before = model.SerializeToString()
    content = from_torch.write_metadata(model, Metadata(model="new", macs=12))
    found = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    assert read_map(found, "tiny").model == "new" and read_map(found, "tiny").macs == 12
    assert "theirs" not in found and model.SerializeToString() == before


def test_what_is_written_is_sealed_and_again_after_it_was_read(tiny_onnx):
    content = from_torch.write_metadata(tiny_onnx, Metadata(model="one"))
    assert check_seal(content, "tiny") and content == from_torch.write_metadata(
        onnx.load_from_string(content), Metadata(model="one")
    )
    with pytest.raises(ArtifactError, match="changed since"):
        check_seal(content.replace(b'"model": "one"', b'"model": "two"'), "tiny")


def test_nothing_is_printed(capfd):
    from_torch.to_onnx(from_torch.merge(Tiny()), (3, 4, 4))
    assert capfd.readouterr() == ("", "")


def test_a_network_that_cannot_be_exported_gives_one_line():
    class Unexportable(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(GateError, match="Unexportable cannot be exported at opset 19") as error:
        from_torch.to_onnx(Unexportable(), (3, 4, 4))
    assert "\n" not in str(error.value)


def test_large_kernels_count_as_the_convolutions_they_are():
    """4 channels of 16 x 16 under a 13 x 13 depthwise kernel: whatever algorithm torch's side takes, the
    graph has one Conv.
    """
    from distill.models.depthwise import DepthwiseConv2d

    network = nn.Sequential(DepthwiseConv2d(4, 13, algorithm="auto"), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert macs.total(from_torch.to_onnx(from_torch.merge(network), (4, 16, 16))) == 4 * 16 * 16 * 13 * 13
