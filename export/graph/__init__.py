"""The fp32 ONNX graph of a student, and what is asked of any graph: readers, costs, exact edits."""
