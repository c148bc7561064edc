"""Several processes that work as one: on several GPUs, or on several machines.

In:  the environment that torchrun gives each of them.
Out: a group that is begun and ended (begin), what the processes tell each other (together), whose share of
     the images is whose (share), averaged gradients (gradients) and batch norm over all (norms).
Elsewhere: what is trained (distill.training), who writes (distill.run.job).

In a single process none of this does anything: no group is made, and torch.distributed is not touched.
"""
