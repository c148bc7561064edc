"""The flags of the export commands; nothing heavy is imported, so that --help is quick."""

from .int8 import Int8Options
from .onnx import FileOptions, OnnxOptions

__all__ = ["FileOptions", "Int8Options", "OnnxOptions"]
