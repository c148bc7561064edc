"""What builds the int8 graph of one network and one placement, with any set of layers left float.

In:  the fp32 graph, a placement, the options; calibration images.
Out: a `Quantizer`: the layout and the graph for any set of int8 layers; every range and weight is found once.
Elsewhere: statistics (export.int8.calibrate), ranges (export.int8.ranges), placement (export.int8.rules),
weights (export.int8.weights); the quantizer of a network that was trained as int8 (export.qat.quantizer).
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cache as once
from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto

from runtime.errors import UsageError

from ..graph import equalize
from ..notes import note
from ..options import Int8Options
from . import budget, cache, quantize, ranges, weights
from .calibrate import collect
from .histogram import Histogram
from .images import CalibrationImages
from .quantize import Int8Weight, Layout
from .ranges import Range
from .rules import rules_of


class Quantizer(ABC):
    """One student and one placement: builds the int8 graph with any set of layers left float."""

    def __init__(self, model: ModelProto, placement: str, rules: quantize.Rules, method: str) -> None:
        self.model, self.placement, self.rules, self.method = model, placement, rules, method
        self.about: dict[str, Any] = {}
        """What the metadata says about how weights and ranges were found."""

    def layout(self, int8_layers: frozenset[str] | None = None) -> Layout:
        """Where Q/DQ goes: as the rules say, or with no other than `int8_layers` of these in int8."""
        layout = quantize.lay_out(self.model, self.placement, self.rules)
        if int8_layers is None:
            return layout
        exclude = (*self.rules.exclude, *budget.all_but(layout, int8_layers))
        return quantize.lay_out(self.model, self.placement, replace(self.rules, exclude=exclude))

    @abstractmethod
    def build(self, int8_layers: frozenset[str] | None = None) -> tuple[Layout, ModelProto]:
        """The layout and the graph."""


class Calibrated(Quantizer):
    """Ranges from one draw of calibration images."""

    def __init__(
        self, model: ModelProto, placement: str, options: Int8Options, calibration: CalibrationImages
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
        self._weights = once(self._prepare_weights)

    def by(self, method: str) -> Calibrated:
        """The same with ranges by another method; statistics and weights are shared."""
        other = copy.copy(self)
        other.method = method
        return other

    def redrawn(self, calibration: CalibrationImages) -> Calibrated:
        """The same method and settings on another draw of calibration images."""
        return Calibrated(self.given, self.placement, self.options, calibration).by(self.method)

    def build(self, int8_layers: frozenset[str] | None = None) -> tuple[Layout, ModelProto]:
        layout = self.layout(int8_layers)
        found = {tensor: self._range(tensor) for tensor in layout.tensors}
        every_step, every_bias = self._weights()
        steps = {name: weight for name, weight in every_step.items() if name in layout.layers}
        biases = {name: bias for name, bias in every_bias.items() if name in layout.layers}
        return layout, quantize.quantize(self.model, layout, found, self.rules, steps, biases)

    def _prepare_weights(self) -> tuple[dict[str, Int8Weight], dict[str, np.ndarray]]:
        """Of every layer the rules put in int8. What is taken out of a bias does not depend on which others
        are int8, too: it is measured with the mean of every layer before as in the float network.
        """
        options = weights.WeightOptions(self.options.weight_scales, self.options.bias_correction)
        images = partial(self.calibration.batches, "correcting biases")
        return weights.prepare(self.model, self.layout(), self.rules, options, images)

    def _range(self, tensor: str) -> Range:
        key = (tensor, self.method)
        if key not in self._found:
            unsigned = quantize.PLACEMENTS[self.placement].unsigned
            self._found[key] = ranges.find(
                self.statistics[tensor], self.method, self.options.percentile, unsigned
            )
        return self._found[key]

    def _statistics(self) -> dict[str, Histogram]:
        """Of every tensor that any layout of this network may quantize: measured once, or read from the
        cache.
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


def candidates(model: ModelProto, rules: quantize.Rules) -> list[str]:
    """Every tensor that some placement may quantize, by these rules or by its own, whichever layers go back
    to float: one calibration serves them all.
    """
    found: dict[str, None] = {}
    for placement, each in itertools.product(
        quantize.PLACEMENTS, dict.fromkeys([quantize.Rules(), replace(rules, exclude=())])
    ):
        try:
            found |= dict.fromkeys(quantize.lay_out(model, placement, each).tensors)
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
