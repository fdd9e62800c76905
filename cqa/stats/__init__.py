"""Statistics of score files: what changed, by how much, and how sure one can be."""
