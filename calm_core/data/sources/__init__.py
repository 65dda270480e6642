"""Sources of text: files, their formats, and the default corpus."""
