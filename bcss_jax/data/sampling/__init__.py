"""Which examples a run trains on: folds of a cross-validation, and how often each example is drawn."""
