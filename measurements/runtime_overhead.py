"""What `Predictor.logits` costs per call more than the bare `InferenceSession.run` loop, in microseconds.

In:  an .onnx file (default: a ResNet-20 for 32 x 32 images with random weights, built in a temporary folder;
needs onnx).
Out: medians of both, interleaved in one process, and their difference; for 1 thread and for all usable cores.
Elsewhere: the target, at most 25 us more at batch 1.

    python measurements/runtime_overhead.py [MODEL.onnx] [--calls 5000]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from bench import report, stats, subject
from bench.clock import calls, latency
from runtime import env

TARGET_US = 25.0
"""Largest difference of the medians that is accepted, microseconds."""

PER_TURN = 5
"""Timed calls before the other one's turn: few, so that both see the same clock and the same neighbors."""


def build_resnet20(path: Path) -> Path:
    """A CIFAR ResNet-20 graph (He et al. 2016): 3 stages of 3 blocks, 16, 32, 64 channels, 40.6 M MACs,
    random weights.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights = [], []

    def add(kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"{kind.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def weight(*shape: int) -> str:
        name = f"weight_{len(weights)}"
        scale = np.sqrt(2 / np.prod(shape[1:]))
        weights.append(numpy_helper.from_array((rng.standard_normal(shape) * scale).astype(np.float32), name))
        return name

    def conv(x: str, channels: tuple[int, int], stride: int = 1, kernel: int = 3) -> str:
        pad = kernel // 2
        return add(
            "Conv",
            [x, weight(channels[1], channels[0], kernel, kernel)],
            kernel_shape=[kernel] * 2,
            pads=[pad] * 4,
            strides=[stride] * 2,
        )

    x, width = add("Relu", [conv("image", (3, 16))]), 16
    for channels in (16, 32, 64):
        for _ in range(3):
            stride = 1 if channels == width else 2
            y = add("Relu", [conv(x, (width, channels), stride)])
            y = conv(y, (channels, channels))
            shortcut = x if stride == 1 else conv(x, (width, channels), stride, kernel=1)
            x, width = add("Relu", [add("Add", [y, shortcut])]), channels
    logits = add("Gemm", [add("Flatten", [add("GlobalAveragePool", [x])]), weight(10, 64)], transB=1)
    graph = helper.make_graph(
        nodes,
        "resnet20",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["N", 10])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), str(path))
    return path


def overhead(path: Path, threads: int | None, count: int) -> dict[str, float]:
    """Medians in us of `logits` and of the bare loop with the same options, and the difference."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # as the runtime does
    settings.intra_op_num_threads = threads or env.usable_cores()
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    with subject.open_artifact(path, subject.RunOptions(device="cpu", threads=threads)) as predictor:
        shape = (1, predictor.input_shape[1] or 3, *calls.set_size(predictor, None))
        x = np.random.default_rng(0).standard_normal(shape, np.float32)
        np.testing.assert_array_equal(predictor.logits(x), session.run(None, {name: x})[0])
        samples = latency.interleaved(
            {"logits": lambda: predictor.logits(x), "bare": lambda: session.run(None, {name: x})},
            iterations=count,
            per_turn=PER_TURN,
            warmup=100,
        )
    logits_us, bare_us = (stats.percentile(samples[name], 50) / 1000 for name in ("logits", "bare"))
    return {"logits_us": logits_us, "bare_us": bare_us, "overhead_us": logits_us - bare_us}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", nargs="?", type=Path, help="an .onnx file; default: a ResNet-20 with random weights"
    )
    parser.add_argument("--calls", type=int, default=5000, help="timed calls of each (default: 5000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or build_resnet20(Path(folder) / "resnet20.onnx")
        worst = 0.0
        for threads in (1, None):
            found = overhead(path, threads, options.calls)
            worst = max(worst, found["overhead_us"])
            print(
                f"{path.name}  batch 1  {threads or env.usable_cores()} threads  logits p50"
                f" {found['logits_us']:.1f}  bare p50 {found['bare_us']:.1f}  overhead"
                f" {found['overhead_us']:+.1f} us  (n={options.calls} each, turns of {PER_TURN}, warm-up 100)"
            )
    print(
        f"largest overhead {worst:+.1f} us, accepted up to {TARGET_US:g} us;"
        f" {report.machine(env.fingerprint())}"
    )
    return 0 if worst <= TARGET_US else 1


if __name__ == "__main__":
    raise SystemExit(main())
