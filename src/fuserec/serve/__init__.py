"""What runs inside and around the inference server: engines, pipeline, models, launcher."""
