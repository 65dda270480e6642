"""Files on any URL, and the self-describing artifacts in them."""
