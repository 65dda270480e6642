"""From sources of text to a tokenised dataset."""
