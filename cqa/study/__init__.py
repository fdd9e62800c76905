"""What needs both training and scoring."""
