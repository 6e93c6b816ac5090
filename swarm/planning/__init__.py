"""Who does what, and which way a microbatch goes."""
