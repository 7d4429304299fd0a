"""What makes commands start fast and quietly: compiled programs that are kept, and other libraries' noise left out."""
