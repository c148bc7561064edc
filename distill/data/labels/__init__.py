"""A teacher's answers for the images that a training will see: stored once, and read in its place."""
