"""One op per file, in one order: reference, kernels, launchers, autograd, public function.

Dimensions: M rows (tokens of a packed batch), K input and N output features, R LoRA rank,
G members of a group of projections that share their input, V vocabulary.
"""
