"""What a detector is: bundles, the runtime that steps them, the state of many series. numpy and onnxruntime only."""
