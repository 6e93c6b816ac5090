"""Who is here: membership by gossip."""
