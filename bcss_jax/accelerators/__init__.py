"""What the compiled steps need on accelerators, found without one: memory, traffic, arithmetic."""
