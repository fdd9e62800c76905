"""Whether a condition makes the text that follows more certain: H(X|y,z) beside H(X|y)."""
