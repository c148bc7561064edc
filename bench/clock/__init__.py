"""What is called on an artifact, and the clock around it."""
