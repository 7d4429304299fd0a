"""Labels a slide: reads, predicts and blends windows, and writes tiles of labels."""
