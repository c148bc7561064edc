"""What this machine has: the conditions that every published number travels with.

In:  nothing.
Out: a plain dict (JSON values; None where not known).
Elsewhere: measuring (bench), what is missing for what (runtime.commands.env), the driver's own words
(runtime.backends.tensorrt.driver).
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "onnx", "torch", "timm")

EXPORT_PACKAGES = (*PACKAGES, "onnxscript", "onnxslim", "large2small")
"""What an artifact records the versions of."""

ENGINE_PACKAGES = ("openvino", "tensorrt", "tensorrt_rtx_cu13_bindings", "pycuda", "cuda-bindings")
"""Other packages a number can depend on."""

CPU_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""Instruction sets that decide how fast fp32, half and int8 convolutions are, as Linux names them: x86 first,
then ARM."""

DARWIN_FEATURES = {"AdvSIMD": "asimd", "FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16"}
"""The same on a Mac, as hw.optional.arm.NAME, or hw.optional.NAME."""

GPU_STATE = {
    "clocks.sm": "sm_clock_mhz",
    "clocks.max.sm": "sm_clock_max_mhz",
    "power.limit": "power_limit_w",
    "temperature.gpu": "temperature_c",
}
"""nvidia-smi's name -> ours; what a GPU number depends on besides the GPU."""

THROTTLE = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""nvidia-smi's newer and older name for the bit mask of what holds the clocks back; an unknown name fails the
whole query."""

MODEL, RELEASE = Path("/proc/device-tree/model"), Path("/etc/nv_tegra_release")
"""Where a Jetson says which board it is, and which Linux for Tegra it runs."""

CPUINFO = Path("/proc/cpuinfo")


def fingerprint() -> dict[str, Any]:
    """CPU, cores, memory, system, GPU with its clocks and power, and package versions of this machine."""
    return {
        "cpu": cpu_model(),
        "cpu_features": cpu_features(),
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
        "system": system(),
        "python": platform.python_version(),
        "gpu": gpu(),
        "gpu_state": gpu_states(),
        "jetson": jetson(),
        "packages": versions((*PACKAGES, *ENGINE_PACKAGES)),
    }


def system() -> str:
    """Operating system, its version, the processor's architecture."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions of `packages`; absent ones are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str | None:
    """The processor's name."""
    return (
        _cpuinfo(r"model name|Model")
        or (_output("sysctl", "-n", "machdep.cpu.brand_string") if _is_mac() else None)
        or platform.processor()
        or None
    )


def cpu_features() -> list[str] | None:
    """Which of `CPU_FEATURES` it has; None where the system does not say."""
    flags = _cpuinfo(r"flags|Features")
    if flags is not None:
        return [name for name in CPU_FEATURES if name in flags.split()]
    if not _is_mac():
        return None
    has = set(
        re.findall(
            r"^hw\.optional\.(?:arm\.)?(\w+): 1$", _output("sysctl", "hw.optional") or "", re.MULTILINE
        )
    )
    return [ours for theirs, ours in DARWIN_FEATURES.items() if theirs in has] + (
        ["avx2"] if "avx2_0" in has else []
    )


def memory_gib() -> float | None:
    """Memory of the machine."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def gpu() -> str | None:
    """Name and driver of every GPU, one a line, as nvidia-smi says; None where there is none."""
    return _nvidia_smi("name,driver_version")


def gpu_states() -> list[dict[str, Any]] | None:
    """Clocks, power limit, temperature, and what holds the clocks back, of every GPU as nvidia-smi says; None
    where it is not.
    """
    text = _nvidia_smi(",".join(GPU_STATE))
    if text is None:
        return None
    states = [
        {name: _number(word) for name, word in zip(GPU_STATE.values(), line.split(","), strict=False)}
        for line in text.splitlines()
    ]
    reasons = next(filter(None, map(_nvidia_smi, THROTTLE)), "").splitlines()
    return [
        state | {"throttle_reasons": reasons[i].strip() if i < len(reasons) else None}
        for i, state in enumerate(states)
    ]


def gpu_processes() -> list[int]:
    """Process numbers of all that compute on a GPU, as nvidia-smi says; empty where it is not."""
    text = _output("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader") or ""
    return [int(word) for word in text.split() if word.isdecimal()]


def gpu_memory() -> dict[int, int]:
    """Process number -> bytes of GPU memory it holds, as nvidia-smi says; empty where it does not."""
    text = (
        _output("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits") or ""
    )
    found: dict[int, int] = {}
    for pid, mebibytes in re.findall(r"^\s*(\d+)\s*,\s*(\d+)\s*$", text, re.MULTILINE):
        found[int(pid)] = found.get(int(pid), 0) + int(mebibytes) * 2**20
    return found


def jetson() -> dict[str, str | None] | None:
    """Board, L4T release and power mode of a Jetson; None on other machines."""
    release = _read(RELEASE)
    if release is None:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    mode = re.search(r"NV Power Mode:\s*(\S+)", _output("nvpmodel", "-q") or "")
    model = _read(MODEL)
    return {
        "model": model.strip("\0 \n") if model else None,
        "l4t": f"{found[1]}.{found[2]}" if found else None,
        "power_mode": mode[1] if mode else None,
    }


def _nvidia_smi(query: str) -> str | None:
    return _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits")


def _number(word: str) -> float | None:
    """None for what nvidia-smi has no answer to, such as [N/A]."""
    return float(word) if re.fullmatch(r"\s*\d+(\.\d+)?\s*", word) else None


def _cpuinfo(names: str) -> str | None:
    """The first value of a line of /proc/cpuinfo, by a pattern for its name."""
    found = re.search(rf"^(?:{names})\s*:\s*(.+)$", _read(CPUINFO) or "", re.MULTILINE)
    return found[1].strip() if found else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _output(*words: str) -> str | None:
    """What a command prints; None when it is not there, fails, hangs or prints nothing."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _is_mac() -> bool:
    return platform.system() == "Darwin"
