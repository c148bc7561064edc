"""Compiling a Triton kernel, as it would be launched, for a GPU that is not here."""

import dataclasses

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@dataclasses.dataclass
class Recorder:
    """In place of a kernel: keeps what it would be launched with."""

    kernel: triton.JITFunction
    calls: list

    def __getitem__(self, grid):
        return lambda *args, **settings: self.calls.append((self.kernel, args, settings))


def build(call, capability, **changes):
    """Compile one recorded call for a compute capability such as 90: Triton's CompiledKernel, with its PTX,
    its binary and the shared memory of a program.
    """
    kernel, args, settings = call
    settings = {**settings, **changes}
    options = {name: settings.pop(name) for name in ("num_warps", "num_stages")}
    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        value = settings[name] if name in settings else args[index]
        if name in settings or (type(value) is int and value == 1):
            signature[name], constants[(index,)] = "constexpr", value
            continue
        is_tensor = isinstance(value, torch.Tensor)
        signature[name] = POINTERS[value.dtype] if is_tensor else "i32" if value < 2**31 else "i64"
        if is_tensor or value % 16 == 0:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
