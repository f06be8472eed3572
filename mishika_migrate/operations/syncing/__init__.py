"""Levels a target with its source, and looks first whether the target is in use already."""
