"""The swarm: who is here, who does what, learning together, and the processes people run."""
