"""Step 6, emit for Core ML: spec, plan, quantized weights -> a stateful model.mlpackage for iOS 18."""
