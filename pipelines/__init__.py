"""The pipelines, their profiles, and what compiles and runs them."""
