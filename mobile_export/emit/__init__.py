"""Step 6, emit: spec, plan, quantized weights -> artifact folder; one package per format, none imports another."""
