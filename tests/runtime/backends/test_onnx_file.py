"""Metadata of an .onnx file without the onnx package: the same as onnx reads, and nothing read of a broken
file.
"""

import subprocess
import sys

import onnx
import pytest
from onnx import helper

from runtime import ArtifactError
from runtime.backends.onnx_file import metadata_props


def test_it_equals_what_the_onnx_package_reads(student):
    model = onnx.load(str(student))
    helper.set_model_props(
        model, {"a": "b", "": "no key", "no value": "", "long": "x" * 100_000, "ünïcode": '日本 "\\\n'}
    )
    model.producer_name, model.model_version = "someone", 2**40
    onnx.save(model, str(student))
    expected = {entry.key: entry.value for entry in onnx.load(str(student)).metadata_props}
    assert len(expected) == 5
    assert metadata_props(student) == expected


def test_a_sealed_file_has_its_seal_beside_the_rest(student, tiny):
    sealed = metadata_props(student)
    tiny.write(student, meta=tiny.metadata(), sealed=False)
    assert sealed.items() > metadata_props(student).items()
    assert len(sealed) == 3


def test_a_file_without_metadata_has_none(tiny, tmp_path):
    assert metadata_props(tiny.write(tmp_path / "plain.onnx")) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 40, b"not a model at all" * 9, b"\x72\x7f", b"\x0b\x0c"],
    ids=["empty", "a number without end", "text", "announces more than there is", "a group"],
)
def test_what_is_not_a_message_is_refused_on_one_line(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"m\.onnx: .*distill export onnx") as found:
        metadata_props(tmp_path / "m.onnx")
    assert "\n" not in str(found.value)


def test_a_cut_that_is_seen_is_refused_and_never_crashes(student):
    whole, complete, refused = student.read_bytes(), metadata_props(student), 0
    for length in range(len(whole)):
        student.write_bytes(whole[:length])
        try:
            # cut between two fields: shorter, and still a message
            assert metadata_props(student).items() <= complete.items()
        except ArtifactError:
            refused += 1
    assert refused > 0.9 * len(whole)


def test_the_package_is_not_needed(student):
    code = (
        "import sys; sys.modules['onnx'] = None; sys.modules['google'] = None\n"
        "from runtime.backends.onnx_file import metadata_props\n"
        f"print(sorted(metadata_props({str(student)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['large2small', 'large2small.seal', 'large2small.sealed']"
