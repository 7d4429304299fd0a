"""What a network proposes for clicks and boxes, and what it has computed of the slide."""
