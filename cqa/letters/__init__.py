"""Letter choice: a chat server without log-probabilities of prompts names the better option."""
