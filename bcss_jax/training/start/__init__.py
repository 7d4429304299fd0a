"""What a training starts from, besides random weights."""
