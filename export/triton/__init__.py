"""Model folders of Triton Inference Server."""
