"""One file per command that needs training's and export's packages, named after what is typed."""
