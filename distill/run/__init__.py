"""A run: from flags to a run folder with a student, a control and a result."""
