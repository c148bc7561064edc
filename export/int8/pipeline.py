"""The int8 part of an export: from training images to a quantized graph that holds the accuracy budget.

In:  the fp32 graph, images to calibrate on, an `Evaluation` on labelled images, the options.
Out: the quantized graph, its plan, and the record of how it came about; GateError when the budget cannot be
held.
Elsewhere: every step: statistics (export.int8.calibrate), ranges (export.int8.ranges), placement
     (export.int8.quantize), weights (export.int8.weights), ranking and roll-back (export.int8.budget),
     accuracy (export.checks.verify), files and metadata (export.commands.onnx).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from onnx import ModelProto

from runtime.errors import UsageError
from runtime.images import ImageSet
from runtime.preprocess import Preprocess

from ..checks import samples
from ..checks.evaluation import Evaluation
from ..checks.verify import Accuracy, mean_kl
from ..options import Int8Options, note
from ..qat import trainer
from . import budget, cache, equalize, quantize, ranges, weights
from .calibrate import collect
from .histogram import Histogram
from .quantize import Int8Weight, Plan
from .ranges import Range

HELD_BACK = 512
"""Labelled calibration-side images that choosing a method and ranking layers are judged on."""
RANDOM_BATCHES, RANDOM_BATCH = 8, 4
"""Images of noise for --calib random."""


@dataclass(frozen=True)
class Calibration:
    """The images that ranges come from, and others of the same kind held back to judge by."""

    preprocess: Preprocess
    images: ImageSet | None = None
    """None: noise."""
    used: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    held_back: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    seed: int = 0

    @property
    def is_random(self) -> bool:
        return self.images is None

    def batches(self, about: str = "") -> Iterator[np.ndarray]:
        """Preprocessed (n, C, H, W) float32."""
        if self.images is None:
            noise = np.random.default_rng(self.seed)
            for _ in range(RANDOM_BATCHES):
                yield noise.normal(size=(RANDOM_BATCH, *self.preprocess.input_size)).astype(np.float32)
            return
        for batch, _ in samples.batches(self.images, self.used, self.preprocess, about=about):
            yield batch

    def judges(self, about: str = "") -> Iterator[np.ndarray]:
        """The held-back images, preprocessed."""
        for batch, _ in samples.batches(self.images, self.held_back, self.preprocess, about=about):
            yield batch

    def record(self) -> dict[str, Any]:
        """Which images these were, by name and content: for the metadata."""
        if self.images is None:
            return {"images": [], "data": "random", "not_for_accuracy": True, "seed": self.seed}
        return {
            "images": samples.listing(self.images, self.used),
            "data_sha256": self.images.fingerprint(),
            "seed": self.seed,
            "held_back": len(self.held_back),
            "not_for_accuracy": False,
        }


def choose_calibration(
    options: Int8Options, images: ImageSet | None, preprocess: Preprocess, held_out: ImageSet, seed: int
) -> Calibration:
    """Stratified images to calibrate on and to judge by, none of them among the evaluation images. Raises
    UsageError naming the first that is; DataError for one that cannot be read.
    """
    if images is None:
        return Calibration(preprocess, seed=seed)
    used, held_back = samples.split(images.labels, options.calib_size, HELD_BACK, seed)
    if len(used) < options.calib_size:
        note(
            f"{images.name} has {len(images)} images: {len(used)} calibrate (asked for {options.calib_size}),"
            f" {len(held_back)} are held back to judge by"
        )
    samples.require_apart(images, np.concatenate([used, held_back]), held_out)
    return Calibration(preprocess, images, used, held_back, seed)


class Quantizer:
    """One student and one placement: builds the int8 graph with any set of layers left float."""

    def __init__(self, model: ModelProto, placement: str, rules: quantize.Rules, method: str) -> None:
        self.model, self.placement, self.rules, self.method = model, placement, rules, method
        self.about: dict[str, Any] = {}
        """What the metadata says about how weights and ranges were found."""

    def plan(self, int8_layers: frozenset[str] | None = None) -> Plan:
        """Where Q/DQ goes: as the rules say, or with no other than `int8_layers` of these in int8."""
        made = quantize.plan(self.model, self.placement, self.rules)
        if int8_layers is None:
            return made
        exclude = (*self.rules.exclude, *budget.all_but(made, int8_layers))
        return quantize.plan(self.model, self.placement, replace(self.rules, exclude=exclude))

    def build(self, int8_layers: frozenset[str] | None = None) -> tuple[Plan, ModelProto]:
        """The plan and the graph."""
        raise NotImplementedError


class Calibrated(Quantizer):
    """Ranges from one draw of calibration images."""

    def __init__(
        self, model: ModelProto, placement: str, options: Int8Options, calibration: Calibration
    ) -> None:
        self.given, self.options, self.calibration = model, options, calibration
        pairs: list[Any] = []
        if options.equalize:
            model, pairs = equalize.equalize(model)
        super().__init__(model, placement, rules_of(options), options.calib_method)
        self.about = {
            "weight_scales": options.weight_scales,
            "bias_correction": options.bias_correction,
            "equalized_pairs": len(pairs),
        }
        self.statistics = self._statistics()
        self._found: dict[tuple[str, str], Range] = {}

    def build(self, int8_layers: frozenset[str] | None = None) -> tuple[Plan, ModelProto]:
        made = self.plan(int8_layers)
        found = {tensor: self._range(tensor) for tensor in made.tensors}
        steps, biases = (
            {name: value for name, value in given.items() if name in made.layers} for given in self._weights
        )
        return made, quantize.quantize(self.model, made, found, self.rules, steps, biases)

    @cached_property
    def _weights(self) -> tuple[dict[str, Int8Weight], dict[str, np.ndarray]]:
        """Of every layer the rules put in int8. What is taken out of a bias does not depend on which others
        are int8, too: it is measured with the mean of every layer before as in the float network.
        """
        options = weights.WeightOptions(self.options.weight_scales, self.options.bias_correction)
        images = partial(self.calibration.batches, "correcting biases")
        return weights.prepare(self.model, self.plan(), self.rules, options, images)

    def _range(self, tensor: str) -> Range:
        key = (tensor, self.method)
        if key not in self._found:
            unsigned = quantize.PLACEMENTS[self.placement].unsigned
            self._found[key] = ranges.find(
                self.statistics[tensor], self.method, self.options.percentile, unsigned
            )
        return self._found[key]

    def _statistics(self) -> dict[str, Histogram]:
        """Of every tensor that any plan of this network may quantize: measured once, or read from
        the cache.
        """
        tensors, images = candidates(self.model, self.rules), self.calibration.images
        if self.options.calib_cache == "none" or images is None:
            return collect(self.model, tensors, self.calibration.batches("calibrating"))
        folder = self.options.calib_cache or cache.default_folder()
        hashes = [images.item_sha256(int(i)) for i in self.calibration.used]
        content = self.model.SerializeToString(deterministic=True)
        key = cache.key(content, tensors, hashes, self.calibration.preprocess.to_dict())
        kept = cache.read(folder, key, note)
        if kept is None:
            kept = collect(self.model, tensors, self.calibration.batches("calibrating"))
            cache.write(folder, key, kept, note)
        return kept


class Trained(Quantizer):
    """Ranges and weights as `distill train --qat` left them in a checkpoint."""

    def __init__(self, found: trainer.Trained) -> None:
        super().__init__(found.model, found.plan.placement, found.rules, "trained")
        self.found = found
        self.about = {"weight_scales": "trained", "bias_correction": False, "equalized_pairs": 0}

    def build(self, int8_layers: frozenset[str] | None = None) -> tuple[Plan, ModelProto]:
        made = self.plan(int8_layers)
        # a layer that goes back to float may move its block's pair to a tensor that was not trained: it then
        # has none
        inputs = {node.name: node.input for node in self.model.graph.node}
        known = [tensor for tensor in made.tensors if tensor in self.found.ranges]
        made = replace(
            made, tensors=known, edges=[edge for edge in made.edges if inputs[edge[0]][edge[1]] in known]
        )
        kept = {name: weight for name, weight in self.found.weights.items() if name in made.layers}
        return made, quantize.quantize(self.model, made, self.found.ranges, self.rules, kept)


def candidates(model: ModelProto, rules: quantize.Rules) -> list[str]:
    """Every tensor that some placement may quantize, by these rules or by its own, whichever layers go back
    to float: one calibration serves them all.
    """
    found: dict[str, None] = {}
    for placement, each in itertools.product(
        quantize.PLACEMENTS, dict.fromkeys([quantize.Rules(), replace(rules, exclude=())])
    ):
        try:
            found |= dict.fromkeys(quantize.plan(model, placement, each).tensors)
        except UsageError:  # nothing to quantize by these; what was asked for says so itself
            continue
    constants = {tensor.name for tensor in model.graph.initializer}
    skips = [
        name
        for node in model.graph.node
        if node.op_type == "Add"
        for name in node.input
        if name not in constants
    ]
    return list(found | dict.fromkeys(skips))


def rules_of(options: Int8Options) -> quantize.Rules:
    """What the flags say; the placement decides what they leave open."""
    layer = {"auto": None, "int8": True, "float": False}
    return quantize.Rules(
        depthwise={"auto": None, "int8": "int8"}.get(options.depthwise, "float"),
        exclude=options.exclude,
        first=layer[options.first_layer],
        classifier=layer[options.last_layer],
    )


@dataclass(frozen=True)
class Score:
    """One calibration method on the held-back images."""

    method: str
    top1: float
    """Percent."""
    agreement: float
    """Share of images with fp32's class, percent."""
    kl: float
    """Mean KL divergence from fp32's probabilities, nats per image."""


def pick_method(
    quantizer: Quantizer,
    logits_of: Callable[[ModelProto], np.ndarray],
    reference: np.ndarray,
    labels: np.ndarray,
) -> list[Score]:
    """Try every calibration method and leave the best in `quantizer.method`; returns all scores.

    logits_of runs a graph on the held-back images; reference (N, K) are fp32's logits there. Accuracy
    decides. Methods whose accuracy cannot be told from the best one's (it has at most as many extra hits as
    one standard error: the square root of the number of images that only one of the two gets right) are told
    apart by their KL divergence from fp32.
    """
    right, scores = {}, []
    for quantizer.method in ranges.METHODS:
        found = logits_of(quantizer.build()[1])
        right[quantizer.method] = found.argmax(1) == labels
        agreement = 100 * float((found.argmax(1) == reference.argmax(1)).mean())
        scores.append(
            Score(
                quantizer.method,
                100 * float(right[quantizer.method].mean()),
                agreement,
                mean_kl(reference, found),
            )
        )
    best = max(scores, key=lambda score: (score.top1, -score.kl)).method

    def as_good(method: str) -> bool:
        only_one = int((right[method] != right[best]).sum())
        return int(right[best].sum()) - int(right[method].sum()) <= only_one**0.5

    quantizer.method = min((s for s in scores if as_good(s.method)), key=lambda score: score.kl).method
    return scores


@dataclass(frozen=True)
class Made:
    """An int8 graph that holds its budget."""

    plan: Plan
    graph: ModelProto
    """As calibrated; what is written may have been made fp16 around the Q/DQ."""
    logits: np.ndarray
    """(N, K) of what is written, on the evaluation images."""
    record: dict[str, Any]
    """How it came about, for the metadata."""
    outcome: budget.Outcome


Finish = Callable[[ModelProto], bytes]
"""From a quantized graph to the bytes of an artifact: fp16 around the Q/DQ if asked for, metadata."""


def make(
    quantizer: Quantizer,
    options: Int8Options,
    calibration: Calibration,
    evaluation: Evaluation,
    finish: Finish,
    draw: Callable[[int], Calibration],
) -> Made:
    """Quantize, and give layers back to float until top-1 on the evaluation images is within the budget.

    draw(seed) chooses other calibration images, for --calib-draws. Raises GateError when the budget cannot be
    held.
    """
    judge = _Judge(quantizer, calibration, evaluation, finish)
    scores: list[Score] = []
    if quantizer.method == "auto":
        scores = pick_method(quantizer, judge.held_back, judge.reference, judge.labels)
        tried = ", ".join(f"{score.method} {score.top1:.2f} % (KL {score.kl:.3g})" for score in scores)
        note(f"--calib-method auto: {quantizer.method}, of {tried} on {len(judge.labels)} held-back images")
    made, graph = quantizer.build()
    said = "accuracy of int8"
    for pattern, matched in made.excluded.items():
        note(f"--exclude {pattern}: matched {matched} node{'s' * (matched != 1)}")
    logits = judge.shipped(graph, said)
    outcome = _hold_budget(quantizer, made, judge, evaluation.compare(logits), options)
    if outcome.float_layers:
        made, graph = quantizer.build(outcome.int8_layers)
        logits = judge.shipped(graph, said)
    record = (
        calibration.record()
        | quantizer.about
        | {
            "method": quantizer.method,
            "percentile": options.percentile if quantizer.method == "percentile" else None,
            "chosen_from": [vars(score) for score in scores],
            "placement": quantizer.placement,
            "scales": quantize.scale_count(made, quantizer.model),
            "tensors": len(made.tensors),
            "int8_layers": len(made.layers),
            "float_layers": (
                made.left_float
                | dict.fromkeys(outcome.float_layers, "rolled back to hold the accuracy budget")
            ),
            "exclude": list(options.exclude),
            "budget": outcome.to_dict(),
            "draws": _draws(quantizer, judge, outcome.int8_layers, draw) if options.calib_draws > 1 else None,
        }
    )
    return Made(made, graph, logits, record, outcome)


def _hold_budget(
    quantizer: Quantizer, made: Plan, judge: _Judge, first: Accuracy, options: Int8Options
) -> budget.Outcome:
    """What stays int8. Ranges of noise are not held to any budget: they have no accuracy to keep."""
    found = budget.groups(quantizer.model, made)
    max_drop = float("inf") if judge.calibration.is_random else options.max_drop
    if not (first.drop > max_drop or options.sensitivity):
        nothing = np.zeros(0)
        return budget.fit(found, first, max_drop, judge.ranking, nothing, nothing, judge.gate)
    with budget.live() as show:
        return budget.fit(
            found,
            first,
            max_drop,
            judge.ranking,
            judge.reference,
            judge.labels,
            judge.gate,
            show,
            always_rank=options.sensitivity,
        )


class _Judge:
    """Runs int8 graphs: on the held-back images to rank and choose, on the evaluation images to decide."""

    def __init__(
        self, quantizer: Quantizer, calibration: Calibration, evaluation: Evaluation, finish: Finish
    ) -> None:
        self.quantizer, self.calibration, self.evaluation, self.finish = (
            quantizer,
            calibration,
            evaluation,
            finish,
        )

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) of the held-back images. Raises UsageError when there are none."""
        if self.calibration.images is None or not len(self.calibration.held_back):
            raise UsageError(
                "no labelled calibration images are held back to rank layers by. Give training images:"
                " --calib DIR"
            )
        return self.calibration.images.labels[self.calibration.held_back]

    @cached_property
    def reference(self) -> np.ndarray:
        """(N, K) of the fp32 file on the held-back images."""
        return self.evaluation.logits(
            self.evaluation.fp32, "fp32 on held-back images", self.calibration.judges
        )

    def held_back(self, graph: ModelProto) -> np.ndarray:
        return self.evaluation.logits(self.finish(graph), "", self.calibration.judges)

    def ranking(self, int8_layers: frozenset[str]) -> np.ndarray:
        return self.held_back(self.quantizer.build(int8_layers)[1])

    def shipped(self, graph: ModelProto, about: str = "") -> np.ndarray:
        return self.evaluation.logits(self.finish(graph), about)

    def gate(self, int8_layers: frozenset[str]) -> Accuracy:
        return self.evaluation.compare(
            self.shipped(self.quantizer.build(int8_layers)[1])
        )  # no bar: the live table is open


def _draws(
    quantizer: Calibrated, judge: _Judge, int8_layers: frozenset[str], draw: Callable[[int], Calibration]
) -> dict[str, Any]:
    """Top-1 of the same settings calibrated on different draws of images: what is luck in their choice."""
    top1 = [judge.gate(int8_layers).int8_top1]
    for number in range(1, quantizer.options.calib_draws):
        other = Calibrated(
            quantizer.given, quantizer.placement, quantizer.options, draw(judge.calibration.seed + number)
        )
        other.method = quantizer.method
        top1.append(
            _Judge(other, other.calibration, judge.evaluation, judge.finish).gate(int8_layers).int8_top1
        )
    spread = float(np.std(top1, ddof=1))
    note(
        f"--calib-draws {len(top1)}: int8 top-1 {min(top1):.2f} to {max(top1):.2f} %, standard deviation"
        f" {spread:.3f} points"
    )
    return {"int8_top1": top1, "standard_deviation_points": spread}
