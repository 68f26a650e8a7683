"""Trainings: settings, tasks, Lightning's trainer, checkpoints, and one run of any system."""
