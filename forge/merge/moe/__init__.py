"""Build a mixture of experts of dense models; see ``plan`` for the idea."""
