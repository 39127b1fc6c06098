"""Step 6, emit for onnxruntime: spec, plan, quantized weights -> model.onnx, model.onnx.data, genai_config.json."""
