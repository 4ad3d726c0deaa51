"""Export formats: one file for each, found by its name (`onnx_int8.py` is the format `onnx-int8`)."""
