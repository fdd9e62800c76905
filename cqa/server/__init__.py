"""Servers of completions that give the log-probabilities of a prompt, and whether to trust one."""
