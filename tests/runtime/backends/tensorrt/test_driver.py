"""NVIDIA's driver through a TEST DOUBLE of libcuda written in C: what is read of it, and every way it may not
answer.
"""

import shutil
import subprocess

import pytest

from runtime.backends.tensorrt import driver

SOURCE = """
#include <string.h>
static int ready;
int cuInit(unsigned flags) { ready = STATUS == 0; return STATUS; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return ready ? 0 : 3; }
int cuDeviceGet(int *device, int index) { *device = 100 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
  strncpy(name, device == 100 ? "First" : "Second", size); return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
  *value = which == 75 ? 8 + (device - 100) : 6; return 0; }
#ifndef OLD
int cuDeviceTotalMem_v2(unsigned long long *bytes, int device) {
  *bytes = (device == 100 ? 24ull : 141ull) << 30; return 0; }
#endif
int cuGetErrorName(int error, const char **name) {
  *name = error == 100 ? "CUDA_ERROR_NO_DEVICE" : 0; return error != 100; }
"""


@pytest.fixture
def library(tmp_path):
    """A function that compiles the double with a status for cuInit and returns its path."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")

    def build(status=0, *flags):
        (tmp_path / "double.c").write_text(SOURCE)
        target = tmp_path / f"libcuda_{status}_{len(flags)}.so"
        subprocess.run(
            [
                compiler,
                "-shared",
                "-fPIC",
                "-w",
                f"-DSTATUS={status}",
                *flags,
                str(tmp_path / "double.c"),
                "-o",
                str(target),
            ],
            check=True,
        )
        return str(target)

    return build


def test_every_gpu_is_read(library):
    gpus = [driver.Gpu(0, "First", "8.6", 24 * 2**30), driver.Gpu(1, "Second", "9.6", 141 * 2**30)]
    assert driver.find(library()) == driver.Driver("13.1", gpus)


def test_no_driver_is_a_sentence():
    assert (
        driver.find("libnothing-of-this-name.so.1")
        == "no NVIDIA driver here (libnothing-of-this-name.so.1 cannot be loaded)"
    )


@pytest.mark.parametrize(
    ("status", "words"), [(100, "cuInit: CUDA_ERROR_NO_DEVICE"), (999, "cuInit: error 999")]
)
def test_a_driver_that_refuses_says_so_in_its_own_words(library, status, words):
    assert driver.find(library(status)) == f"the NVIDIA driver does not answer ({words})"


def test_a_library_that_lacks_a_function_is_not_a_crash(library):
    assert "cuDeviceTotalMem_v2" in driver.find(library(0, "-DOLD"))
