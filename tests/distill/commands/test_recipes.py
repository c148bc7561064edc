"""`distill recipes`: the list says what each recipe changes, and a printed one is a file to train with."""

import json

import pytest
import yaml

from distill import __main__ as cli
from distill import recipe as recipes
from distill.commands import recipes as command


@pytest.mark.parametrize("name", recipes.named())
def test_the_list_names_purpose_and_the_settings_that_are_not_the_defaults(name, capsys):
    assert cli.main(["recipes", "--json"]) == 0
    (found,) = [each for each in json.loads(capsys.readouterr().out)["recipes"] if each["name"] == name]
    loaded, default = recipes.to_dict(recipes.load(name)), recipes.to_dict(recipes.Recipe())
    assert set(found["differs"]) == {key for key in loaded if loaded[key] != default[key]}
    assert len(found["purpose"]) > 30


@pytest.mark.parametrize("name", recipes.named())
def test_a_printed_recipe_is_the_recipe(name, capsys, tmp_path):
    assert cli.main(["recipes", name]) == 0
    (tmp_path / "mine.yaml").write_text(text := capsys.readouterr().out)
    assert recipes.load(str(tmp_path / "mine.yaml")) == recipes.load(name)
    assert yaml.safe_load(text) == recipes.read(name)


def test_the_list_for_a_person_has_every_name_and_its_purpose(capsys):
    assert cli.main(["recipes"]) == 0
    out = capsys.readouterr().out
    for name in recipes.named():
        assert f"{name}\n" in out
    assert "kd_loss nkd" in out and max(map(len, out.splitlines())) <= 100


def test_the_purpose_is_the_comment_at_the_start():
    assert (
        command.purpose("# One line\n# and another.\nepochs: 3   # not this\n# nor this\n")
        == "One line and another."
    )


def test_an_unknown_name_gets_the_nearest(capsys):
    assert cli.main(["recipes", "papr"]) == 2
    assert "no recipe 'papr'; did you mean paper?" in capsys.readouterr().err
