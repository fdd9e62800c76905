"""Contestants: each runs in a process of its own and works when it has its turn."""
