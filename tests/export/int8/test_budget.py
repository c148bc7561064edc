"""export.int8.budget: which layers go together, what ranks first, and how many must be float until the budget
holds.
"""

import io
import json
import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from rich.console import Console

from export.checks import verify
from export.int8 import budget, quantize
from export.int8.ranges import Range
from runtime.errors import GateError
from runtime.images import open_images

LABELS = np.arange(8) % 2


def graph_of(body, weights):
    made = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> g (float[batch, 32, 8, 8] images) => '
        f"(float[batch, d, e, f] logits) {{ {body} }}"
    )
    made.graph.initializer.extend(
        numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()
    )
    for node in made.graph.node:
        node.name = node.output[0]
    return made


def grouped(body, weights):
    made = graph_of(body, weights)
    return [group.layers for group in budget.groups(made, quantize.lay_out(made))]


# ---- groups


def test_a_layer_with_its_activation_and_skip_is_a_group_of_its_own():
    assert grouped(
        "a = Conv (images, w)  b = Relu (a)  c = Conv (b, w)  d = Add (c, b)  r = Relu (d)  logits = Conv"
        " (r, v)",
        {"w": (32, 32, 1, 1), "v": (4, 32, 1, 1)},
    ) == [("a",), ("c",)]


def test_two_layers_that_meet_in_an_add_are_one_group_named_after_the_deeper():
    assert grouped(
        "s = Conv (images, w)  a = Conv (images, w)  b = Relu (a)  c = Conv (b, w)  d = Add (s, c)"
        "e = Conv (d, w)  logits = Conv (e, v)",
        {"w": (32, 32, 1, 1), "v": (4, 32, 1, 1)},
    ) == [("c", "s"), ("a",), ("e",)]


def test_layers_that_meet_in_an_add_but_are_read_elsewhere_too_do_not_fuse():
    assert grouped(
        "s = Conv (images, w)  c = Conv (images, w)  d = Add (s, c)  e = Conv (s, w)  f = Add (d, e)"
        "logits = Conv (f, v)",
        {"w": (32, 32, 1, 1), "v": (4, 32, 1, 1)},
    ) == [("s",), ("c",), ("e",)]


@pytest.fixture
def with_shortcut():
    """A block whose shortcut is a layer too; with one of `c` and `s` in int8, the output of the other gets
    Q/DQ at the Add.
    """
    return graph_of(
        "s = Conv (images, w)  a = Conv (images, w)  b = Relu (a)  c = Conv (b, w)  d = Add (s, c)  e = Relu"
        " (d)f = Conv (e, w)  g = Add (f, e)  logits = Conv (g, v)",
        {"w": (32, 32, 1, 1), "v": (4, 32, 1, 1)},
    )


@pytest.mark.parametrize("placement", ["tensorrt", "cpu"])
@pytest.mark.parametrize("name", ["student_onnx", "convnext_onnx", "with_shortcut"])
def test_every_layer_is_in_one_group_and_any_choice_of_groups_needs_no_new_range(request, name, placement):
    model = request.getfixturevalue(name)
    made = quantize.lay_out(model, placement)
    found = budget.groups(model, made)
    assert sorted(layer for group in found for layer in group.layers) == sorted(made.layers)
    for index in range(len(found)):
        for chosen in (found[index : index + 1], found[:index] + found[index + 1 :], found[::2]):
            layers = frozenset(layer for group in chosen for layer in group.layers)
            part = quantize.lay_out(model, placement, quantize.Rules(exclude=budget.all_but(made, layers)))
            assert set(part.layers) == layers and set(part.tensors) <= set(made.tensors)


def test_shares_are_of_the_whole_network(student_onnx):
    made = quantize.lay_out(student_onnx)
    shares = {group.name: group.macs_percent for group in budget.groups(student_onnx, made)}
    assert shares["layer1.0.conv1"] == pytest.approx(
        100 * 32 * 32 * 16 * 16 * 9 / 40551040
    )  # published: 40.55 million
    assert sum(shares.values()) == pytest.approx(
        100 - 100 * 640 / 40551040
    )  # all but the classifier, 64 x 10


def test_names_that_look_like_patterns_are_taken_literally():
    made = quantize.Layout(layers=["a[0]", "a0", "b*"])
    assert budget.all_but(made, frozenset(["a0"])) == ("a[[]0]", "b[*]")


# ---- ranking


def rows_of(damages):
    return [budget.Row(budget.Group((f"g{i}",), 100 / len(damages)), 0.0, kl) for i, kl in enumerate(damages)]


def test_ranked_by_kl_with_one_evaluation_per_group():
    found = [budget.Group(("a",), 10.0), budget.Group(("b", "s"), 20.0), budget.Group(("c",), 30.0)]
    even = np.zeros((8, 2))
    fp32 = np.where(np.eye(2)[LABELS] > 0, math.log(3.0), 0.0)  # all right, 3/4 sure
    answers = {("a",): fp32 * 0.5, ("b", "s"): even, ("c",): fp32.copy()}
    answers["c",][1] = 0  # even odds on 1 of 8 images, the others as they were
    asked, shown = [], []

    def evaluate(layers):
        asked.append(layers)
        return next(logits for names, logits in answers.items() if layers == frozenset(names))

    ranking = budget.Ranking(evaluate, fp32, LABELS)
    rows = budget.rank(found, ranking, lambda rows, said: shown.append((len(rows), said)))
    assert asked == [{"a"}, {"b", "s"}, {"c"}] and [count for count, _ in shown] == [1, 2, 3]
    assert [row.group.name for row in rows] == ["b", "a", "c"]
    assert [row.damage_points for row in rows] == [50.0, 0.0, 12.5]  # even odds: class 0, right on half
    by_hand = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)  # 0.1308 nats
    assert (rows[0].damage_kl, rows[2].damage_kl) == pytest.approx((by_hand, by_hand / 8))
    assert shown[1][1] == "sensitivity 2/3: b, s  50.00 points, KL 0.131 nats, 20.0 % of MACs"


def test_logits_that_are_not_finite_name_the_layer():
    with pytest.raises(GateError, match=r"not finite with only a\[1\] in int8.*--exclude 'a\[\[\]1\]'"):
        ranking = budget.Ranking(lambda layers: np.full((8, 2), np.nan), np.zeros((8, 2)), LABELS)
        budget.rank([budget.Group(("a[1]",), 1.0)], ranking)


# ---- rolling back


def accuracy(lost, images=200):
    """int8 loses `lost` images of those that fp32, always right, gets right."""
    labels = np.zeros(images, int)
    return verify.accuracy(np.eye(2)[labels], np.eye(2)[(np.arange(images) < lost).astype(int)], labels)


class Gate:
    """Images lost by the number of groups in float; counts its calls."""

    def __init__(self, lost, rows):
        self.lost, self.rows, self.calls = lost, rows, []

    def __call__(self, layers):
        count = len(self.rows) - len(layers)
        assert layers == {row.group.name for row in self.rows[count:]}  # the worst went first
        self.calls.append(count)
        return accuracy(self.lost[count])


def fitted(lost, max_drop, **options):
    rows = rows_of([1 / (i + 1) for i in range(len(lost))])
    gate, fp32 = Gate(lost, rows), np.array([[2.0, 0.0]] * 8)
    evaluated = []

    def evaluate(layers):
        (name,) = layers
        evaluated.append(name)
        return fp32 * [[0.1 * (1 + int(name[1:]) / len(rows)), 1.0]]  # g0 is furthest from fp32

    bar, ranking = budget.Bar(accuracy(lost[0]), max_drop, gate), budget.Ranking(evaluate, fp32, LABELS)
    result = budget.fit([row.group for row in rows], bar, ranking, **options)
    return result, gate.calls, evaluated


def changed(flipped, images=200):
    """int8 chooses another class on `flipped` images, half of them to the better: top-1 stays at 50 %."""
    labels = np.tile([0, 1], images // 2)
    fp32 = np.eye(2)[np.zeros(images, int)]
    return verify.accuracy(fp32, np.eye(2)[(np.arange(images) < flipped).astype(int)], labels)


def test_a_low_agreement_rolls_back_although_top1_held():
    rows = rows_of([1 / (i + 1) for i in range(6)])
    flipped, tried = {0: 90, 1: 60, 2: 30, 3: 4, 4: 2, 5: 0}, []

    def gate(layers):
        tried.append(len(rows) - len(layers))
        return changed(flipped[tried[-1]])

    bar = budget.Bar(changed(90), 1.0, gate, min_agreement=98.0)
    assert bar.first.drop == 0 and bar.first.agreement == 55
    assert budget.roll_back(rows, {0: bar.first}, bar) == 3 and tried == [1, 2, 4, 3]
    with pytest.raises(
        GateError,
        match=r"50\.00 % at best.*, 99\.00 % of the answers fp32's, with 1 of 2.*at most 1 allowed and 99\.5"
        r" % agreement asked for, nothing written.*or a lower --min-agreement",
    ):
        budget.roll_back(rows[:2], {0: changed(4)}, budget.Bar(changed(4), 1.0, lambda _: changed(2), 99.5))


@pytest.mark.parametrize("groups", [2, 3, 7, 16, 33])
def test_as_few_groups_as_possible_go_to_float_in_a_bounded_number_of_tries(groups):
    for needed in range(1, groups):
        result, calls, evaluated = fitted([10 if count < needed else 1 for count in range(groups)], 0.5)
        assert result.float_layers == tuple(f"g{i}" for i in range(needed))
        assert result.int8_layers == {f"g{i}" for i in range(needed, groups)}
        assert len(calls) == len(set(calls)) <= 2 * math.log2(groups) + 1 and len(evaluated) == groups
        assert result.int8_macs_percent == pytest.approx(100 * (groups - needed) / groups)
        assert [row.precision for row in result.rows] == ["float"] * needed + ["int8"] * (groups - needed)
        assert [each.float_groups for each in result.history] == [0, *calls] and result.ranking_images == len(
            LABELS
        )


def test_what_is_returned_was_measured_and_holds_where_the_drop_jumps_up_and_down():
    random = np.random.default_rng(0)
    for _ in range(50):
        lost = [9, *random.integers(0, 9, size=11), 0]
        result, calls, _ = fitted(lost, 1.0)
        count = len(result.float_layers)
        assert count in calls and lost[count] <= 2 and result.accuracy.drop == 0.5 * lost[count]
        assert lost[count - 1] > 2  # one group less was measured, and does not hold


def test_a_first_graph_within_the_budget_is_kept_without_ranking():
    result, calls, evaluated = fitted([1, 9, 9], 0.5)  # 0.5 points of 0.5 allowed
    assert calls == evaluated == [] and result.rows == () and result.float_layers == ()
    assert result.int8_layers == {"g0", "g1", "g2"} and result.int8_macs_percent == pytest.approx(100)
    assert result.history == (budget.Try(0, 0.5, pytest.approx(100), 99.5),)


def test_ranking_can_be_asked_for_all_the_same():
    result, calls, evaluated = fitted([0, 0, 0], 0.5, always_rank=True)
    assert (
        calls == []
        and evaluated == ["g0", "g1", "g2"]
        and [row.precision for row in result.rows] == ["int8"] * 3
    )


def test_a_tenth_of_a_point_on_200_images_allows_no_image():
    result, _, _ = fitted([1, 1, 0, 0], 0.1)  # one image is 0.5 points
    assert result.float_layers == ("g0", "g1") and result.accuracy.drop == 0


def test_a_budget_that_cannot_be_met_fails_with_the_nearest_try():
    with pytest.raises(
        GateError,
        match=(
            r"98\.50 % at best, 1\.50 points below fp32's 100\.00 % on 200 images \(one image is 0\.5"
            r" points\), with 4 of 6 "
            r"groups of layers float; at most 0\.1 allowed, nothing written\. Most damage: g0, g1, g2"
        ),
    ):
        fitted([9, 8, 8, 8, 3, 4], 0.1)


def test_one_group_alone_cannot_be_rolled_back():
    with pytest.raises(GateError, match=r"with 0 of 1 groups"):
        fitted([9], 0.1)


# ---- what is written and shown


def test_json_and_markdown_hold_the_table_worst_first():
    result, _, _ = fitted([9, 9, 1, 1], 0.5)
    read = json.loads(budget.to_json(result))
    assert [group["layers"] for group in read["groups"]] == [["g0"], ["g1"], ["g2"], ["g3"]]
    assert [group["precision"] for group in read["groups"]] == ["float", "float", "int8", "int8"]
    first = {"float_groups": 0, "drop_points": 4.5, "int8_macs_percent": 100, "agreement_percent": 95.5}
    assert read["history"][0] == first
    assert (read["agreement_percent"], read["min_agreement_percent"]) == (99.5, None)
    assert (read["int8_macs_percent"], read["drop_points"], read["max_drop_points"]) == (50, 0.5, 0.5)
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in budget.to_markdown(result).splitlines()
        if line.startswith("| g")
    ]
    assert [row[0] for row in table[:4]] == ["g0", "g1", "g2", "g3"] and table[0][3:] == ["25.0", "float"]
    assert float(table[0][2]) == pytest.approx(result.rows[0].damage_kl, rel=0.01)
    assert "INT8 keeps 50.0 % of the multiply-accumulates" in budget.to_markdown(result)


def test_no_budget_is_null_not_infinity():
    result, _, _ = fitted([9, 9], math.inf, always_rank=True)
    assert json.loads(budget.to_json(result), parse_constant=pytest.fail)["max_drop_points"] is None


def test_without_a_terminal_each_step_is_a_line_on_stderr(capsys):
    with budget.live() as show:
        fitted([9, 1], 0.5, show=show)
    shown = capsys.readouterr()
    last = "budget: 1 of 2 groups float, drop 0.50 points, 99.50 % agreement (allowed 0.5)"
    assert shown.out == "" and shown.err.splitlines()[-1] == last
    assert len(shown.err.splitlines()) == 3


def test_on_a_terminal_the_table_grows(monkeypatch, capsys):
    screen = io.StringIO()
    monkeypatch.setattr(budget, "console", lambda: Console(file=screen, force_terminal=True, width=100))
    with budget.live() as show:
        fitted([9, 1], 0.5, show=show)
        show([budget.Row(budget.Group(("odd[red]name",), 1.0), 0.0, 1.0)], "budget: last")
    assert all(word in screen.getvalue() for word in ("KL to fp32, nats", "odd[red]name", "budget: last"))
    assert capsys.readouterr().out == ""


# ---- a real student


@pytest.fixture(scope="module")
def digits(preprocess):
    images = open_images("digits", "val")
    return preprocess.batch(images.image(i) for i in range(256)), images.labels[:256]


class Student:
    """The student's graph with the range of one tensor far too small; counts graphs that were run."""

    def __init__(self, model, images, damaged):
        self.model, self.images, self.runs = model, images, 0
        self.made = quantize.lay_out(model)
        self.ranges = {name: Range(-6.0, 6.0) for name in self.made.tensors} | self.exact_ranges()
        tensor = next(node.input[0] for node in model.graph.node if node.name == damaged)
        self.ranges[tensor] = Range(*(bound / 60 for bound in self.ranges[tensor]))

    def exact_ranges(self):
        probed = onnx.ModelProto.FromString(self.model.SerializeToString())
        inner = [name for name in self.made.tensors if name != "images"]
        probed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
        values = self.session(probed).run(inner, {"images": self.images[:32]})
        return {
            name: Range(float(value.min()), float(value.max()))
            for name, value in zip(inner, values, strict=True)
        }

    def session(self, model):
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        return ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])

    def float_logits(self, part):
        return self.session(self.model).run(["logits"], {"images": self.images[part]})[0]

    def logits(self, layers, part):
        self.runs += 1
        rules = quantize.Rules(exclude=budget.all_but(self.made, layers))
        made = quantize.lay_out(self.model, "tensorrt", rules)
        return self.session(quantize.quantize(self.model, made, self.ranges, rules)).run(
            ["logits"], {"images": self.images[part]}
        )[0]


def test_a_damaged_layer_is_found_first_and_rolled_back_until_the_budget_holds(student_onnx, digits):
    images, labels = digits
    broken = Student(student_onnx, images, "layer2.1.conv2")
    ranking, held_out = slice(0, 48), slice(48, 256)
    fp32 = broken.float_logits(held_out)
    first = verify.accuracy(fp32, broken.logits(frozenset(broken.made.layers), held_out), labels[held_out])
    assert first.drop > 5
    found = budget.groups(student_onnx, broken.made)
    result = budget.fit(
        found,
        budget.Bar(
            first,
            2.0,
            lambda layers: verify.accuracy(fp32, broken.logits(layers, held_out), labels[held_out]),
        ),
        budget.Ranking(
            lambda layers: broken.logits(layers, ranking), broken.float_logits(ranking), labels[ranking]
        ),
    )
    assert (
        result.rows[0].group.name == "layer2.1.conv2"
        and result.rows[0].damage_kl > 5 * result.rows[1].damage_kl
    )
    assert result.float_layers == ("layer2.1.conv2",) and result.accuracy.drop <= 2.0
    assert broken.runs == 1 + len(found) + 1  # the first graph, one per group, one that holds
    assert 90 < result.int8_macs_percent < 95

    broken.runs = 0
    with pytest.raises(
        GateError, match=r"of 19 groups of layers float; at most -50 allowed.*Most damage: layer2\.1\.conv2"
    ):
        budget.roll_back(
            result.rows,
            {0: first},
            budget.Bar(
                first,
                -50.0,
                lambda layers: verify.accuracy(
                    broken.float_logits(ranking), broken.logits(layers, ranking), labels[ranking]
                ),
            ),
        )
    assert broken.runs == 6  # 1, 2, 4, 8, 16, 18 groups in float
