"""Quantization-aware distillation: the student is trained as the very int8 graph that export will write.

In:  a trained student, its training images, a teacher or None; later a checkpoint that this training wrote.
Out: `QatTrainer`, a Trainer of that graph; `trained`, from its checkpoint to the parts that
export.int8.quantize takes.
Elsewhere: the graph in torch (export.qat.torch_graph), everything else about training
(distill.training.trainer), flags (export.commands.train_qat).

The checkpoint's state_dict stays the fp32 student, so that accuracy budgets are held against it; what was
learned lies beside it in `quantized`: float weights, a scale per tensor, placement and rules. Batch norm is
folded before training starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from distill.checkpoint import Checkpoint, load
from distill.evaluate import evaluate
from distill.training.records import EpochRecord
from distill.training.task import Task
from distill.training.trainer import Details, Trainer
from runtime import files
from runtime.errors import ArtifactError, UsageError

from ..checks import samples
from ..graph import from_torch
from ..graph.view import View, channel_axis
from ..int8.calibrate import calibrate
from ..int8.quantize import (
    LARGEST,
    PLACEMENTS,
    Int8Weight,
    Plan,
    Rules,
    plan,
    quantize,
    with_shared_ranges,
)
from ..int8.ranges import Range
from .torch_graph import TorchGraph, grids_of, scales_of

SCHEMA = 1


@dataclass(frozen=True)
class QatSettings:
    """How the graph is quantized before it is trained; none of it may change when a run is resumed."""

    placement: str
    rules: Rules
    opset: int
    calib_size: int
    calib_method: str
    percentile: float


class QatTrainer(Trainer):
    """Trains the student's quantized ONNX graph instead of the student.

    train_size: fine-tune on so many training images, stratified; 0: all. Starting ranges are calibrated on
    the training images, or come from RUN/last.pth where that exists and `resumes`.
    """

    def __init__(self, settings: QatSettings, train_size: int, resumes: bool, task: Task) -> None:
        if not len(task.train.labels):
            raise UsageError(
                f"{task.train.name}: a stream cannot be sampled for calibration. Give an image folder: --data"
                " DIR"
            )
        self.settings, self.resumes = settings, resumes
        self.calibration_images, recipe = task.train, task.recipe
        self.before: dict[str, float] = {}
        """Accuracy of the fp32 student and of the untrained int8 graph on the validation images."""
        if train_size:
            chosen = samples.choose(task.train.labels, train_size, recipe.seed)
            task = replace(task, train=samples.Subset(task.train, chosen))
        super().__init__(task)
        started_from = {"file": recipe.student_ckpt, "sha256": files.sha256(recipe.student_ckpt)}
        self.lineage = self.lineage | {"student": started_from}

    def network_of(self, student: nn.Module) -> TorchGraph:
        self.fp32_student = student.eval()
        self.fp32 = from_torch.to_onnx(
            from_torch.merge(student), self.task.preprocess.input_size, self.settings.opset
        )
        self.plan = plan(self.fp32, self.settings.placement, self.settings.rules)
        self.ranges = self._ranges()
        quantized = quantize(self.fp32, self.plan, self.ranges, self.settings.rules)
        self.shared = shared_scales(self.plan, View(self.fp32))
        return TorchGraph(self.fp32, quantized, self.shared)

    def _ranges(self) -> dict[str, Range]:
        """A range per tensor to start from."""
        last = self.task.folder / "last.pth"
        if self.resumes and last.is_file():
            entry = require_entry(load(last))
            if set(entry["ranges"]) == set(self.plan.tensors):  # otherwise `resume` will say what differs
                return {tensor: Range(*limits) for tensor, limits in entry["ranges"].items()}
        images, settings = self.calibration_images, self.settings
        chosen = samples.choose(images.labels, settings.calib_size, self.recipe.seed)
        batches = (
            batch for batch, _ in samples.batches(images, chosen, self.task.preprocess, about="calibrating")
        )
        return calibrate(
            self.fp32,
            self.plan.tensors,
            batches,
            settings.calib_method,
            settings.percentile,
            unsigned=PLACEMENTS[settings.placement].unsigned,
        )

    def fit(self) -> EpochRecord:
        """As Trainer.fit, having measured what this training is to mend."""
        if not self.before:
            found = {
                name: evaluate(
                    network,
                    self.val_loader,
                    self.device,
                    channels_last=self.recipe.channels_last,
                    skip_bad=self.recipe.skip_bad_images,
                )
                for name, network in (("fp32", self.fp32_student.to(self.device)), ("int8", self.model))
            }
            self.before = {
                f"{name}_{key}": getattr(accuracy, key)
                for name, accuracy in found.items()
                for key in ("top1", "top5", "loss")
            }
        return super().fit()

    def details(self) -> Details:
        """What this training mended."""
        fp32, untrained = self.before["fp32_top1"], self.before["int8_top1"]
        return Details(
            {
                "fp32_top1_percent": fp32,
                "untrained_int8_top1_percent": untrained,
                "placement": self.settings.placement,
            },
            f" as int8; the fp32 student has {fp32:.2f} %, and {untrained:.2f} % when quantized without this"
            " training",
        )

    def checkpoint_of(self, weights: Mapping[str, Tensor], metrics: dict[str, Any]) -> Checkpoint:
        """The fp32 student, and beside it the trained graph; `top1` is the student's, `int8_top1` the
        graph's.
        """
        if metrics:
            kept = {key: metrics[key] for key in ("epoch", "images", "weights")}
            metrics = {
                "top1": self.before["fp32_top1"],
                "top5": self.before["fp32_top5"],
                "loss": self.before["fp32_loss"],
                "int8_top1": metrics["top1"],
                "int8_top5": metrics["top5"],
                "int8_loss": metrics["loss"],
                "untrained_int8_top1": self.before["int8_top1"],
                **kept,
            }
        found = super().checkpoint_of(self.fp32_student.state_dict(), metrics)
        scales = scales_of(self.model, weights)
        scales |= {tensor: scales[first] for tensor, first in self.shared.items()}
        zeros = {grid.tensor: grid.zero for grid in grids_of(self.model).values()}
        found.quantized = {
            "schema": SCHEMA,
            "settings": plain(self.settings),
            "layers": list(self.plan.layers),
            "ranges": {tensor: [float(limit) for limit in range_] for tensor, range_ in self.ranges.items()},
            "zero_points": {tensor: zeros[first] for tensor, first in self.shared.items()},
            "state": {name: value.detach().cpu().contiguous() for name, value in weights.items()},
            "scales": {tensor: scale.cpu() for tensor, scale in scales.items()},
            "fp32_sha256": weights_sha256(found.state_dict),
            "before": self.before,
        }
        return found

    def restore(self, last: Checkpoint) -> None:
        entry = require_entry(last)
        then, now = entry["settings"], plain(self.settings)
        for key in now:
            if then.get(key) != now[key]:
                raise UsageError(
                    f"the run to resume has {key} {then.get(key)!r}, asked for is {now[key]!r}. A resumed run"
                    " keeps its quantization; start another one with a new --output"
                )
        if entry["fp32_sha256"] != weights_sha256(self.fp32_student.state_dict()):
            raise UsageError(
                f"{self.recipe.student_ckpt}: is not the student that the run began with. Put it back, "
                "or start another run with a new --output"
            )
        if set(entry["state"]) != set(self.model.state_dict()):
            raise ArtifactError(
                f"{last.path}: its graph is not the one that these versions of torch and onnx export. "
                "Resume with the versions in its lineage, or start another run"
            )
        self.model.load_state_dict(entry["state"])
        self.before = entry["before"]


def shared_scales(made: Plan, view: View) -> dict[str, str]:
    """{every tensor of the plan: the one whose scale it uses}, as export.int8.quantize shares ranges.

    Found by giving every tensor a range of its own: what comes out with the same range shares it.
    """
    own = {tensor: Range(-float(index), float(index)) for index, tensor in enumerate(made.tensors, start=1)}
    shared = with_shared_ranges(made.tensors, own, view, PLACEMENTS[made.placement].joins)
    first: dict[Range, str] = {}
    return {tensor: first.setdefault(range_, tensor) for tensor, range_ in shared.items()}


# from a checkpoint to the graph that is exported


@dataclass(frozen=True)
class Trained:
    """What export.int8.quantize needs to write the trained graph; also with some layers left float, which
    keep trained weights.
    """

    model: ModelProto
    """The fp32 graph with the trained float weights and biases."""
    plan: Plan
    ranges: dict[str, Range]
    """Such that export.int8.quantize gets the trained scales and zero points."""
    rules: Rules
    weights: dict[str, Int8Weight]

    def quantized(self) -> ModelProto:
        """The graph that was evaluated in training."""
        return quantize(self.model, self.plan, self.ranges, self.rules, self.weights)


def placement_of(checkpoint: Checkpoint) -> str:
    """What the checkpoint was trained for. Raises ArtifactError when it does not say."""
    try:
        return str(checkpoint.quantized["settings"]["placement"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{checkpoint.path}: its entry 'quantized' is damaged (no {error}). Train again: distill train "
            "--qat"
        ) from error


def trained(checkpoint: Checkpoint, fp32: ModelProto, placement: str | None = None) -> Trained:
    """The parts of the graph that `distill train --qat` trained. fp32: export.graph.from_torch.to_onnx of the
    checkpoint's student.

    Raises UsageError when `placement` is not the one it was trained for, ArtifactError when the checkpoint is
    damaged or this graph is not the one it was trained as (another opset or exporter).
    """
    entry = require_entry(checkpoint)
    settings = QatSettings(**entry["settings"] | {"rules": rules_from(entry["settings"]["rules"])})
    if placement not in (None, settings.placement):
        raise UsageError(
            f"{checkpoint.path}: was trained for --placement {settings.placement}, not {placement}, which"
            f" quantizes other tensors. Give --placement {settings.placement}, or train again with"
            f" --placement {placement}"
        )
    if entry["fp32_sha256"] != weights_sha256(checkpoint.state_dict):
        raise ArtifactError(
            f"{checkpoint.path}: its int8 weights belong to another fp32 student than the one in the file. "
            "Take best.pth as training wrote it"
        )
    made = plan(fp32, settings.placement, settings.rules)
    if made.layers != entry["layers"] or set(made.tensors) != set(entry["ranges"]):
        opset = next(each.version for each in fp32.opset_import if not each.domain)
        advice = (
            f"It was trained at opset {settings.opset}: give --opset {settings.opset}"
            if opset != settings.opset
            else "Export with the versions in its lineage, or train again with these"
        )
        raise ArtifactError(
            f"{checkpoint.path}: the graph of this export (opset {opset}) is not the one that was trained. "
            + advice
        )
    model = with_weights(fp32, entry["state"])
    scales = {tensor: values.numpy() for tensor, values in entry["scales"].items()}
    view = View(model)
    unsigned = PLACEMENTS[settings.placement].unsigned
    return Trained(
        model,
        made,
        {
            tensor: range_of(float(scales[tensor]), entry["zero_points"][tensor], unsigned)
            for tensor in made.tensors
        },
        settings.rules,
        {layer: on_grid(layer, scales, view) for layer in made.layers},
    )


def to_quantized(checkpoint: Checkpoint, fp32: ModelProto) -> ModelProto:
    """The int8 graph of a checkpoint that `distill train --qat` wrote; see `trained`."""
    return trained(checkpoint, fp32).quantized()


def with_weights(fp32: ModelProto, state: Mapping[str, Tensor]) -> ModelProto:
    """A copy of the graph whose initializers have the values in `state`, where that has them."""
    result = ModelProto()
    result.CopyFrom(fp32)
    for tensor in result.graph.initializer:
        if tensor.name in state:
            tensor.CopyFrom(numpy_helper.from_array(state[tensor.name].numpy(), tensor.name))
    return result


def on_grid(layer: str, scales: Mapping[str, np.ndarray], view: View) -> Int8Weight:
    """A layer's float weight in steps of its trained scales, rounded as in training."""
    node = view.nodes[layer]
    weight, mine = view.constant(node.input[1]), scales[node.input[1]]
    axis = channel_axis(node)
    steps = np.rint(weight / mine.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]))
    return Int8Weight(np.clip(steps, -LARGEST, LARGEST).astype(np.int8), mine)


def range_of(scale: float, zero: int, unsigned: bool) -> Range:
    """The range to which export.int8.quantize gives this scale and zero point; exact, products of a float32
    and a byte fit float64.
    """
    return (
        Range(-zero * scale, (255 - zero) * scale) if unsigned else Range(-LARGEST * scale, LARGEST * scale)
    )


def require_entry(checkpoint: Checkpoint) -> dict[str, Any]:
    """What quantization-aware training learned. Raises ArtifactError when there is none, or of another
    version.
    """
    entry = checkpoint.quantized
    if entry is None:
        raise ArtifactError(
            f"{checkpoint.path}: was not trained as an int8 graph. Train it: distill train --qat --resume"
            " FILE"
        )
    if entry.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{checkpoint.path}: quantized weights of schema {entry.get('schema')}; this version reads"
            f" {SCHEMA}. Install the large2small that wrote it"
        )
    return entry


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def plain(settings: QatSettings) -> dict[str, Any]:
    """As dicts and lists, which a checkpoint may hold."""
    return asdict(settings) | {
        "rules": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(settings.rules).items()
        }
    }


def rules_from(values: Mapping[str, Any]) -> Rules:
    """The inverse for the rules."""
    return Rules(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
