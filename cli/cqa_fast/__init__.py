"""The command; `python -m cqa_fast` is `cqa-fast`."""
