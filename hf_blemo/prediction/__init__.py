"""Clips or features to blends: models, pipeline, reports and the demo page."""
