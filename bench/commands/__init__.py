"""One file per command that measures, named after what is typed."""
