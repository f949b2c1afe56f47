"""What moves batches through the stages."""
