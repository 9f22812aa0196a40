"""Judge a model by what it answers: divergence from another model on the same tokens."""
