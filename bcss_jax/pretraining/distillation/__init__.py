"""Student and teacher: the network that is pretrained, its losses and targets, its optimizer and its step."""
