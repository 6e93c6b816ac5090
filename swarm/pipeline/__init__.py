"""Learning together: iterations, rounds, stages, data."""
