"""Optimizer mathematics as free functions on tensors."""
