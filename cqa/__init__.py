"""cqa-fast: fine-tune a LoRA on expert samples and score texts by conditional log-probability.

Importing this package never imports torch; its parts do.
"""

__version__ = "0.1.0"
