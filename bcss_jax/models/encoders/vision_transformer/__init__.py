"""The vision transformers of DINO, DINOv2, DINOv3 and of pathology's foundation models: one network of many forms."""
