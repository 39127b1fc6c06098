"""Step 4, build: DecoderSpec + SharingPlan -> one Decoder that every emitter and the verification run."""
