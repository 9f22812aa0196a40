"""Memory and speed of a model, measured in processes of their own."""
