"""Where two texts meet: a space at the end of the first, or none where one is due.

Nothing is inserted between a context and an option, and most tokenizers write a space into the word
after it. So a context that ends in a space makes the option begin as no text does, and an option
without its space reads as the end of the word before.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from cqa.text import counted

_UNSPACED = (  # scripts that part no words by spaces, as Unicode's names of letters begin
    "CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "YI ",
    "JAVANESE", "BALINESE", "TAI ",
)  # fmt: skip
_CLOSING = ".,;:!?"


def ends_in_space(text: str) -> bool:
    """Return whether a text ends in a space (a line end is none)."""
    return text[-1:] in (" ", "\t", "\N{NO-BREAK SPACE}")


def lacks_space(before: str, after: str) -> bool:
    """Return whether letter meets letter, or a closing sign a letter, in a script with spaces."""
    left, right = before[-1:], after[:1]
    return _is_spaced(right) and (_is_spaced(left) or left in tuple(_CLOSING))


def _is_spaced(sign: str) -> bool:
    if not sign or unicodedata.category(sign) not in ("Lu", "Ll", "Lt", "Lo"):
        return False
    return not unicodedata.name(sign, "").startswith(_UNSPACED)


@dataclass(slots=True)
class Spacing:
    """Counts of texts that meet wrongly, and the first of each."""

    n: int = 0
    n_spaced: int = 0
    n_unspaced: int = 0
    first_spaced: str = ""
    first_unspaced: str = ""

    def add(self, name: str, before: str, after: tuple[str, ...]) -> None:
        """Take the texts of an item or a sample of this name."""
        self.n += 1
        if ends_in_space(before):
            self.n_spaced += 1
            self.first_spaced = self.first_spaced or name
        elif any(lacks_space(before, text) for text in after):
            self.n_unspaced += 1
            self.first_unspaced = self.first_unspaced or name

    def warnings(self, first: str, second: str) -> list[str]:
        """Return what to say, in which the two texts are called so."""
        said = []
        if self.n_spaced:
            said.append(
                f"{self.n_spaced} of {counted(self.n, first)} "
                f"{'ends' if self.n_spaced == 1 else 'end'} in a space, `{self.first_spaced:.80}` "
                f"first; write it at the start of the {second} instead, where tokenizers have it"
            )
        if self.n_unspaced:
            said.append(
                f"{self.n_unspaced} of {counted(self.n, second)} "
                f"{'meets' if self.n_unspaced == 1 else 'meet'} the {first} without a space, "
                f"`{self.first_unspaced:.80}` first; nothing is inserted, so the {second} has to "
                "start with one"
            )
        return said
