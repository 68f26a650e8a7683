"""What one does with trained models."""
