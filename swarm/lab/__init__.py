"""Worlds for experiments."""
