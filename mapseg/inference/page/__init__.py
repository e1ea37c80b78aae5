"""The page of an output folder: its frames, predictions and confidences, without labels."""
