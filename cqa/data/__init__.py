"""Files to records to token ids."""
