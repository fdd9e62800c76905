"""How much of an option's attention is on its own context, beside another item's context."""
