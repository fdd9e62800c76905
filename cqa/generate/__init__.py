"""Texts drawn after prompts, from a command."""
