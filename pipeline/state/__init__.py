"""What outlives a batch: the recent steps of every user."""
