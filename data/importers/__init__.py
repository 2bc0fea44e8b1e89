"""One file a source of scenes."""
