"""One file per command that needs the runtime alone, named after what is typed."""
