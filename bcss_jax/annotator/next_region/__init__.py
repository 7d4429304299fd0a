"""Which region of a slide to annotate next: where models, or the flips of one, disagree most."""
