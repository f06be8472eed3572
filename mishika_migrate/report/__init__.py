"""The faces: what people and programs see of plans, events and results. The only home of rich."""
