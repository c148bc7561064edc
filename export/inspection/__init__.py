"""What a file says about itself and its ancestors, hashed again; the report of `distill inspect`."""
