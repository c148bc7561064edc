"""Two or more artifacts against one another: which is faster, which is right, or that nobody can tell."""
