"""A folder of scores to a report: words, tables and figures, from files alone."""
