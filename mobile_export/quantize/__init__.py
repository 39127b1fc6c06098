"""Step 5, quantize: weights + recipe -> QuantizedWeight. Packing belongs to emit/, each runtime orders nibbles its own way."""
