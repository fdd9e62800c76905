"""Token ids to hidden states: the decoder, its weights, and the adapters."""
