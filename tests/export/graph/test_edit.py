"""export.graph.edit: each change does what its name says, to a copy or to the model itself."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from export.graph import edit, run

TEXT = """<ir_version: 9, opset_import: ["" : 20]> g (float[2] x) => (float[2] y)
<float[2] w = {3, 4}, float[1] unread = {7}>
{ c = Constant <value_floats = [1.0, 2.0]> () a = Add (x, c) y = Mul (a, w) }"""


def parsed(text=TEXT):
    return onnx.parser.parse_model(text)


def result_of(model, x):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.array(x, np.float32)})[0].tolist()


def names(model):
    return [tensor.name for tensor in model.graph.initializer]


def test_a_copy_and_its_model_do_not_change_each_other():
    model = parsed()
    before, copied = model.SerializeToString(), edit.copy(model)
    copied.graph.node[1].op_type = "Sub"
    del copied.graph.initializer[:]
    assert model.SerializeToString() == before and model.graph.node[1].op_type == "Add"


def test_a_copied_node_has_the_changes_that_were_asked_for_and_its_model_has_not():
    node = parsed().graph.node[1]
    other = edit.copy_node(node, name="b", op_type="Sub")
    other.input[0] = "z"
    assert (other.name, other.op_type, list(other.input)) == ("b", "Sub", ["z", "c"])
    assert (node.name, node.op_type, list(node.input)) == ("", "Add", ["x", "c"])


def test_nodes_are_replaced_by_some_of_the_graphs_own_in_the_order_given():
    model = parsed()
    add, multiply = model.graph.node[1], model.graph.node[2]
    first = helper.make_node("Neg", ["x"], ["n"])
    add.input[0] = "n"
    edit.replace_nodes(model, [model.graph.node[0], first, add, multiply])
    assert [node.op_type for node in model.graph.node] == ["Constant", "Neg", "Add", "Mul"]
    assert result_of(model, [1, 1]) == [(-1 + 1) * 3, (-1 + 2) * 4]


def test_values_are_changed_in_a_copy_and_unknown_names_are_passed_over():
    model = parsed()
    other = edit.with_values(model, {"w": np.array([10, 20], np.float32), "nobody": np.zeros(1)})
    assert result_of(other, [0, 0]) == [1 * 10, 2 * 20] and names(other) == ["w", "unread"]
    assert result_of(model, [0, 0]) == [1 * 3, 2 * 4]


def test_what_nobody_reads_goes_and_outputs_and_tensors_of_branches_stay():
    model = parsed(
        """<ir_version: 9, opset_import: ["" : 20]> g (float[2] x, bool b) => (float[2] y, float[1] kept)
        <float[2] w = {3, 4}, float[1] unread = {7}, float[1] kept = {5}, float[1] also = {1}>
        { y = If (b) <then_branch = t () => (float[2] p) { p = Mul (x, w) },
        else_branch = e () => (float[2] q) { q = Neg (x) }> }"""
    )
    edit.drop_unread(model)
    assert names(model) == ["w", "kept"]
    onnx.checker.check_model(model, full_check=True)


def test_a_fresh_name_is_the_wanted_one_or_the_first_free_number():
    assert edit.fresh("a", {"b"}) == "a"
    assert edit.fresh("a", {"a"}) == "a_0"
    assert edit.fresh("a", {"a", "a_0", "a_2"}) == "a_1"


def test_more_tensors_are_given_out_and_those_given_out_already_stay_once():
    model = parsed()
    session = run.session(edit.with_outputs(model, ["a", "y"]))
    assert [value.name for value in session.get_outputs()] == ["y", "a"]
    assert session.run(["a"], {"x": np.zeros(2, np.float32)})[0].tolist() == [1, 2]
    assert len(model.graph.output) == 1


def test_constant_nodes_become_initializers_and_the_numbers_stay():
    model = edit.without_constant_nodes(parsed())
    assert [node.op_type for node in model.graph.node] == ["Add", "Mul"] and "c" in names(model)
    assert result_of(model, [5, 6]) == [(5 + 1) * 3, (6 + 2) * 4]


def test_numbers_of_every_kind_of_constant_node():
    def value_of(**attribute):
        return edit.constant_value(helper.make_node("Constant", [], ["c"], **attribute))

    assert value_of(value_float=0.5).dtype == np.float32 and value_of(value_float=0.5).shape == ()
    assert value_of(value_ints=[1, 2]).tolist() == [1, 2] and value_of(value_ints=[1, 2]).dtype == np.int64
    assert value_of(value=numpy_helper.from_array(np.array([[3]], np.int8))).tolist() == [[3]]
    assert value_of(value_string=b"text") is None
