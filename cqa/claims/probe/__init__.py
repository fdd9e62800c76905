"""Whether the states of a model tell the good option from the bad, layer by layer."""
