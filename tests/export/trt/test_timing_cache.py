"""The file of kernel timings: one for each TensorRT, GPU and driver, and never a reason for a
build to fail.
"""

from export.trt import timing_cache

DEVICE = {"gpu": "NVIDIA H200 / MIG 1g", "compute_capability": "9.0", "driver": "580.65"}


def test_each_machine_and_version_has_its_own_file(tmp_path):
    changes = ({}, {"gpu": "Orin"}, {"compute_capability": "8.7"}, {"driver": "540"})
    paths = {
        timing_cache.path(str(tmp_path), version, DEVICE | change)
        for version in ("10.3.0", "11.4.0")
        for change in changes
    }
    assert len(paths) == 8 and all(path.parent == tmp_path for path in paths)


def test_name_says_what_it_is_for_in_letters_every_disk_takes(tmp_path):
    assert (
        timing_cache.path(str(tmp_path), "10.3.0", DEVICE).name
        == "trt10.3.0-sm9.0-NVIDIA_H200_MIG_1g-driver580.65.cache"
    )


def test_default_folder_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert timing_cache.path("", "1", DEVICE).parent == tmp_path / "large2small" / "timing"


def test_what_was_written_is_read(tmp_path):
    cache = timing_cache.path(str(tmp_path / "new"), "1", DEVICE)
    assert timing_cache.read(cache) is None
    assert timing_cache.write(cache, b"timings") is None and timing_cache.read(cache) == b"timings"


def test_none_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = timing_cache.path("none", "1", DEVICE)
    assert cache is None and timing_cache.read(cache) is None and timing_cache.write(cache, b"x") is None
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written_is_said_and_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = timing_cache.path(str(tmp_path / "file" / "below"), "1", DEVICE)
    assert timing_cache.write(cache, b"x").startswith("timing cache not kept: ")
    assert timing_cache.read(cache) is None
