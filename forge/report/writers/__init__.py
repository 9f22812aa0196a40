"""One file a format; a writer lays a comparison out, and decides nothing."""
