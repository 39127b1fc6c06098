"""Step 8, measure: an artifact -> Profile: how fast it loads and runs here, and what it keeps resident."""
