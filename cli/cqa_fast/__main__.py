"""Run the command as a module."""

from cqa_fast.main import main

main()
