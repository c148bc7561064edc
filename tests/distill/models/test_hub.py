"""Published files over HTTP from a hub on this machine: announced, quiet, once; and what is said where there
is none.
"""

import socket
import time
from importlib.metadata import version

import pytest
from packaging.version import Version

from distill.models import hub
from runtime.errors import MissingError, UsageError

WANTED = hub.Wanted("hf-hub:a/b", "--student-ckpt FILE", lambda: 12_000_000)


def test_a_file_is_announced_with_its_size_and_fetched_once(hub_files, capsys):
    hub_files["model.safetensors"] = b"x" * 2_500_000
    path = hub.from_hub("a/b", ["model.safetensors"], WANTED)
    assert path.read_bytes() == b"x" * 2_500_000
    said = capsys.readouterr()
    assert said.err == f"downloading hf-hub:a/b, 2.5 MB, from {hub_files.host}\n" and said.out == ""
    hub_files.asked.clear()
    assert hub.from_hub("a/b", ["model.safetensors"], WANTED) == path
    assert capsys.readouterr().err == f"hf-hub:a/b: downloaded before, 2.5 MB, {path}\n"
    assert hub_files.asked == []


def test_where_no_size_is_told_it_is_that_of_the_weights(hub_files, capsys):
    hub_files["model.safetensors"], hub_files.hub.tells_size = b"x", False
    if Version(version("huggingface_hub")) < Version("1.31"):  # which refuses such a server
        with pytest.raises(MissingError, match=r"cannot be fetched from .* does not have a Content-Length"):
            hub.from_hub("a/b", ["model.safetensors"], WANTED)
    else:
        hub.from_hub("a/b", ["model.safetensors"], WANTED)
    assert f"downloading hf-hub:a/b, about 48 MB, from {hub_files.host}" in capsys.readouterr().err


def test_the_first_name_that_is_there_is_taken(hub_files, capsys):
    hub_files["pytorch_model.bin"] = b"pickled"
    names = ["model.safetensors", "pytorch_model.bin"]
    assert hub.from_hub("a/b", names, WANTED).read_bytes() == b"pickled"
    hub_files["model.safetensors"] = b"safe"
    assert hub.from_hub("a/b", names, WANTED).read_bytes() == b"pickled"  # here already
    with pytest.raises(UsageError, match=r"has the repository, but no config\.json in it"):
        hub.from_hub("a/b", ["config.json"], WANTED)


def test_what_is_not_there_is_said(hub_files):
    with pytest.raises(
        UsageError, match=r"hf-hub:a/b: 127.0.0.1:.* has no such repository, or it is a private"
    ):
        hub.from_hub("a/c", ["config.json"], WANTED)
    for repository in ("resnet18", "a/b/c", "../b", "a/b?x", "a--b/c", "a/b.", "a/b@x y", "a" * 99 + "/b"):
        with pytest.raises(UsageError, match="expected hf-hub:OWNER/NAME"):
            hub.from_hub(repository, ["config.json"], WANTED)


def test_a_hub_out_of_reach_is_one_line_within_seconds(hub_files, monkeypatch):
    from huggingface_hub import constants

    way_out = r"a/b: cannot be fetched from .*\({}\)\. Give its weights as a file: --student-ckpt FILE"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", place + "/{repo_id}/{revision}/{filename}"
        )
        monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.3)
        before = time.monotonic()
        with pytest.raises(MissingError, match=way_out.format("no answer")):
            hub.from_hub("a/b", ["config.json"], WANTED)
        monkeypatch.setattr(hub, "ANSWER_SECONDS", 60)
        monkeypatch.setattr(hub, "MOST_SECONDS", 0.3)  # as where looking up a name hangs
        with pytest.raises(MissingError, match=way_out.format("no answer")):
            hub.from_hub("a/b", ["config.json"], WANTED)
        assert time.monotonic() - before < 3
    monkeypatch.setattr(hub, "MOST_SECONDS", 8)
    with pytest.raises(MissingError, match=way_out.format("no connection")):  # the port is closed now
        hub.from_hub("a/b", ["config.json"], WANTED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match=way_out.format("HF_HUB_OFFLINE is set")):
        hub.from_hub("a/b", ["config.json"], WANTED)


def test_a_cached_file_needs_no_hub(hub_files, monkeypatch):
    from huggingface_hub import constants

    hub_files["config.json"] = b"{}"
    path = hub.from_hub("a/b", ["config.json"], WANTED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.from_hub("a/b", ["config.json"], WANTED) == path


def test_an_address_is_fetched_once_into_torchs_folder(hub_files, monkeypatch, tmp_path, capsys):
    import torch

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    hub_files["weights.pth"] = b"y" * 300_000
    url = f"http://{hub_files.host}/a/b/resolve/main/weights.pth"
    path = hub.from_url(url, WANTED)
    assert path == tmp_path / "torch" / "checkpoints" / "weights.pth" and path.stat().st_size == 300_000
    assert capsys.readouterr().err == f"downloading hf-hub:a/b, 0.3 MB, from {hub_files.host}\n"
    assert hub.from_url(url, WANTED) == path
    with pytest.raises(MissingError, match="it answered 404"):
        hub.from_url(url.replace("weights", "others"), WANTED)


class Files(dict):
    """The files of a/b, and the hub they are on."""

    def __init__(self, served):
        super().__init__()
        self.hub, self.host, self.asked = served, served.host, served.asked


@pytest.fixture
def hub_files(request):
    served = request.getfixturevalue("hub")
    files = Files(served)
    served.files["a/b"] = files
    return files
