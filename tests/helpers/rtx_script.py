"""The beginning of a script that TensorRT for RTX builds in, for a process of its own: a crash is then a
failed test.

It reads the ONNX file that is its first argument; `builder`, `network` and `log.lines` are there behind it.
"""

PARSE = """
import sys
import tensorrt_rtx_bindings as trt
class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.lines = []
    def log(self, severity, text):
        self.lines.append(text)
log = Log()
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
if not parser.parse(open(sys.argv[1], "rb").read()):
    sys.exit("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
"""
