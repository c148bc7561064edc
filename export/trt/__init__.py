"""TensorRT plans: built in a process of their own, read back, checked on the GPU."""
