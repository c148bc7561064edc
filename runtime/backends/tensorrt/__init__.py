"""TensorRT plans: reading, opening, device memory and CUDA graphs."""
