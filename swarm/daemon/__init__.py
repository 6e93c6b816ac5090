"""The processes people run."""
