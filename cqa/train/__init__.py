"""Samples to adapters: the training loop."""
