"""The paper's other claims, each beside its null control: `cqa-fast study NAME`."""
