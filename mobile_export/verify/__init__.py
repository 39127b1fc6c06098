"""Step 7, verify: artifact + checkpoint -> parity numbers; passes or fails. One file per runtime."""
