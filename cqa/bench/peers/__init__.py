"""Peers: each runs in a process of its own and works when it is called."""
