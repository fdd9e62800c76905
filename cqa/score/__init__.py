"""Items to scores: the scorer, and the statistics of the paper."""
