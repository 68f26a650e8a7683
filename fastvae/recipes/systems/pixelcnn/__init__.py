"""PixelCNN over binary images."""
