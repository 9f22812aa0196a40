"""What computes answers: a model on this machine, or one behind an API."""
