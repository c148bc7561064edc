"""Training: one run folder from flags to `best.pth`; the loop, its losses weighed together, sparsity."""
