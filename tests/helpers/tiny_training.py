"""Flags of a training that takes seconds: a narrow network, small images, one epoch, on the CPU."""

TINY = [
    "--student-args",
    "width=0.25",
    "--img-size",
    "16",
    "--batch",
    "4",
    "--epochs",
    "1",
    "--device",
    "cpu",
]
