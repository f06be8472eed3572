"""Follows a source and switches traffic: streams both ways, gates, fence, proof, and the end of a move."""
