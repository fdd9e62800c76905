"""What the files of this package hold, as types."""
