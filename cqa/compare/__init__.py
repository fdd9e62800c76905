"""Models compared on the same items: different bases, tokenizers and servers side by side."""
