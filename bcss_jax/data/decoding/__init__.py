"""What an image file says about its pixels, and the pixels as they are stored, for PNG, JPEG and TIFF."""
