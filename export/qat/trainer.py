"""Quantization-aware distillation: the student is trained as the very int8 graph that export will write.

In:  a trained student, its training images, a teacher or None.
Out: `QatTrainer`, a Trainer of that graph; its checkpoints hold a `Learned` (export.qat.trained).
Elsewhere: the graph in torch (export.qat.torch_graph), from the checkpoint to an int8 file
(export.qat.trained, export.qat.quantizer), everything else about training (distill.training.trainer), flags
(export.commands.train_qat).

The checkpoint's state_dict stays the fp32 student, so that accuracy budgets are held against it; what was
learned is beside it in `quantized`: float weights, a scale per tensor, placement and rules. Batch norm is
folded before training starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from distill.checkpoint import Checkpoint, load
from distill.evaluate import evaluate
from distill.models import classifier
from distill.training.loggers import Loggers
from distill.training.records import EpochRecord
from distill.training.task import Task
from distill.training.trainer import Details, Trainer
from runtime import files
from runtime.errors import ArtifactError, UsageError

from ..checks import samples
from ..graph import from_torch
from ..graph.view import View
from ..int8.calibrate import calibrate
from ..int8.quantize import PLACEMENTS, Layout, lay_out, quantize, with_shared_ranges
from ..int8.ranges import Range
from .torch_graph import TorchGraph, grids_of, scales_of
from .trained import Learned, QatSettings, weights_sha256


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
        new = next((note for note in self.student.notes if classifier.NEW in note), None)
        if new:
            raise ArtifactError(
                f"{recipe.student_ckpt}: class order differs from the data's ({new}); its graph cannot be"
                " trained as int8 before it is trained on these classes. Train it first: --student-ckpt"
            )
        started_from = {"file": recipe.student_ckpt, "sha256": files.sha256(recipe.student_ckpt)}
        self.lineage = self.lineage | {"student": started_from}

    def network_of(self, student: nn.Module) -> TorchGraph:
        self.fp32_student = student.eval()
        self.fp32 = from_torch.to_onnx(
            from_torch.merge(student), self.task.preprocess.input_size, self.settings.opset
        )
        self.layout = lay_out(self.fp32, self.settings.placement, self.settings.rules)
        self.ranges = self._ranges()
        quantized = quantize(self.fp32, self.layout, self.ranges, self.settings.rules)
        self.shared = shared_scales(self.layout, View(self.fp32))
        self.graph = TorchGraph(self.fp32, quantized, self.shared)
        return self.graph

    def _ranges(self) -> dict[str, Range]:
        """A range per tensor to start from."""
        last = self.task.folder / "last.pth"
        if self.resumes and last.is_file():
            started = Learned.of(load(last)).ranges
            if set(started) == set(self.layout.tensors):  # otherwise `resume` will say what differs
                return {tensor: Range(*limits) for tensor, limits in started.items()}
        images, settings = self.calibration_images, self.settings
        chosen = samples.choose(images.labels, settings.calib_size, self.recipe.seed)
        batches = (
            batch for batch, _ in samples.batches(images, chosen, self.task.preprocess, about="calibrating")
        )
        return calibrate(
            self.fp32,
            self.layout.tensors,
            batches,
            settings.calib_method,
            settings.percentile,
            unsigned=PLACEMENTS[settings.placement].unsigned,
        )

    def fit(self, at_end: Callable[[Loggers, int], None] = lambda log, step: None) -> EpochRecord:
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
        return super().fit(at_end)

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
            kept = {key: metrics[key] for key in ("epoch", "images", "weights", "select")}
            metrics = {
                "top1": self.before["fp32_top1"],
                "top5": self.before["fp32_top5"],
                "loss": self.before["fp32_loss"],
                "int8_top1": metrics["top1"],
                "int8_top5": metrics["top5"],
                "int8_loss": metrics["loss"],
                "int8_balanced": metrics["balanced"],
                "untrained_int8_top1": self.before["int8_top1"],
                **kept,
            }
        found = super().checkpoint_of(self.fp32_student.state_dict(), metrics)
        scales = scales_of(self.graph, weights)
        scales |= {tensor: scales[first] for tensor, first in self.shared.items()}
        zeros = {grid.tensor: grid.zero for grid in grids_of(self.graph).values()}
        found.quantized = Learned(
            settings=self.settings,
            layers=list(self.layout.layers),
            ranges={tensor: [float(limit) for limit in range_] for tensor, range_ in self.ranges.items()},
            zero_points={tensor: zeros[first] for tensor, first in self.shared.items()},
            state={name: value.detach().cpu().contiguous() for name, value in weights.items()},
            scales={tensor: scale.cpu() for tensor, scale in scales.items()},
            fp32_sha256=weights_sha256(found.state_dict),
            before=self.before,
        ).to_dict()
        return found

    def restore(self, last: Checkpoint) -> None:
        learned = Learned.of(last)
        then, now = learned.settings.to_dict(), self.settings.to_dict()
        for key in now:
            if then[key] != now[key]:
                raise UsageError(
                    f"the run to resume has {key} {then[key]!r}, asked for is {now[key]!r}. A resumed run"
                    " keeps its quantization; start another one with a new --output"
                )
        if learned.fp32_sha256 != weights_sha256(self.fp32_student.state_dict()):
            raise UsageError(
                f"{self.recipe.student_ckpt}: is not the student that the run began with. Put it back, "
                "or start another run with a new --output"
            )
        if set(learned.state) != set(self.model.state_dict()):
            raise ArtifactError(
                f"{last.path}: its graph is not the one that these versions of torch and onnx export. "
                "Resume with the versions in its lineage, or start another run"
            )
        self.model.load_state_dict(learned.state)
        self.before = learned.before


def shared_scales(layout: Layout, view: View) -> dict[str, str]:
    """{every tensor of the layout: the one whose scale it uses}, as export.int8.quantize shares ranges.

    Found by giving every tensor a range of its own: what comes out with the same range shares it.
    """
    own = {tensor: Range(-float(index), float(index)) for index, tensor in enumerate(layout.tensors, start=1)}
    shared = with_shared_ranges(layout.tensors, own, view, PLACEMENTS[layout.placement].joins)
    first: dict[Range, str] = {}
    return {tensor: first.setdefault(range_, tensor) for tensor, range_ in shared.items()}
