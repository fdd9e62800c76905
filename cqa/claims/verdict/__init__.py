"""What a model says of a pair when asked, beside what its log-probabilities say."""
