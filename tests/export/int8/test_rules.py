"""export.int8.rules: what the flags of a command say about layers."""

from export.int8.rules import rules_of
from export.options import Int8Options


def test_flags_become_rules():
    rules = rules_of(Int8Options(depthwise="fp32", first_layer="float", last_layer="int8", exclude=("a*",)))
    assert (rules.depthwise, rules.first, rules.classifier, rules.exclude) == ("float", False, True, ("a*",))
    rules = rules_of(Int8Options())
    assert (rules.depthwise, rules.first, rules.classifier) == (None, None, None)  # the placement decides
