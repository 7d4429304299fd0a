"""Annotates slides in a browser: prompts, brush and eraser, saved as QuPath's GeoJSON."""
