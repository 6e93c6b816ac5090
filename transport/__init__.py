"""How bytes and tensors travel: machines, links, identity, the wire and its codecs."""
