"""BrierLM and what is reported with it."""
