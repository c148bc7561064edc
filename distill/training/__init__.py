"""Training: the loop, its losses weighed together, sparsity, and what is written while it runs."""
