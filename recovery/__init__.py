"""What to do about loss: decide, rebuild, transfer, and keep on disk."""
