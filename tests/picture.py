"""Take the picture of a report that README.md shows: tests/picture.py REPORT.html PICTURE.png."""

import json
import sys
import tempfile
from pathlib import Path

from browser import Browser
from helpers import ROOT
from PIL import Image

WIDTH, HEIGHT = 1000, 1020  # the verdict
COLOURS = 64
# Paths are shown from the checkout on, wherever it lies.
SHORTEN = """
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) walk.currentNode.data = walk.currentNode.data.replaceAll(%s, "");
"""


def main(page: str, picture: str) -> None:
    """Write the top of a page as PNG."""
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        browser.resize(WIDTH, HEIGHT)
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        browser.open(Path(page))
        browser.evaluate(SHORTEN % json.dumps(f"{ROOT}/"))
        browser.screenshot(Path(picture), full=False)
        browser.close()
    with Image.open(picture) as image:
        image.convert("RGB").quantize(COLOURS).save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
