"""Models of cqa-fast in other programs."""
