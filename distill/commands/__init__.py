"""One file per command of training, named after what is typed."""
