"""From a scored model to a version in the registry."""
