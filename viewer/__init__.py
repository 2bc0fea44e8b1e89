"""A window on a scene: what the model paints from where a person stands, live in the browser."""
