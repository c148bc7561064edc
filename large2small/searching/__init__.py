"""The best student within a limit of latency: candidates, rounds, processes, journal, result."""
