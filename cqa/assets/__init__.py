"""What the package ships beside its code."""

from pathlib import Path

DEMO = Path(__file__).parent / "demo"
COVERAGE = Path(__file__).parent / "coverage"
STUDIES = Path(__file__).parent / "studies"
