"""Step 9, check: what an artifact needs in memory and time, from its manifest alone, against what a phone has."""
