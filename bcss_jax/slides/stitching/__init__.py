"""Labels a slide: windows are read, predicted, blended and written."""
