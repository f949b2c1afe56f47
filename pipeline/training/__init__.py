"""Training of the models and of the parameters beside them: `python -m pipeline.training`."""
