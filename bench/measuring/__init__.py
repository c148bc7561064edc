"""Artifacts in new processes: how soon they answer, what memory they take, how they run on other versions."""
