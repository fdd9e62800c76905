"""Whether constraints together say more than the sum of what each says alone: the rubric's gap."""
