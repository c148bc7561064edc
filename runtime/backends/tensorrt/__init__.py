"""TensorRT plans: reading, opening, device memory and CUDA graphs."""

from __future__ import annotations

from pathlib import Path

from ...artifact import Metadata
from .. import Backend, Engine, Library, Settings


def open_file(path: Path, settings: Settings) -> tuple[Backend, Metadata]:
    """The plan on a GPU, by default the first, and its metadata. Raises as
    `runtime.backends.tensorrt.backend.TrtBackend` does.
    """
    from .backend import TrtBackend  # here, so that a command that reads plans does not pay for it

    backend = TrtBackend(
        path,
        "cuda" if settings.device is None else settings.device,
        contexts=settings.contexts,
        cuda_graph=settings.cuda_graph,
        verify=settings.verify,
    )
    return backend, backend.metadata


ENGINE = Engine(
    name="tensorrt",
    title="TensorRT",
    file="a plan",
    suffixes=(".plan",),
    reads=("contexts", "cuda_graph"),
    open=open_file,
    make="Build one: distill export trt {path}",
    preferred=True,
    libraries=(
        Library("tensorrt", "TensorRT", 'pip install "large2small[tensorrt]"'),
        Library(
            "tensorrt_rtx", "TensorRT for RTX", 'pip install "large2small[rtx]"', "tensorrt_rtx_bindings"
        ),
    ),
    needs=("tensorrt or tensorrt_rtx", "pycuda or cuda-python", "a GPU"),
)
