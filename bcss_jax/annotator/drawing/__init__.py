"""What is drawn on a slide: outlines with their history, and the file that keeps them."""
