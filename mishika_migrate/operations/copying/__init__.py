"""Moves rows: the run, its tasks, where and how fast they run, and how an ended one goes on or is undone."""
