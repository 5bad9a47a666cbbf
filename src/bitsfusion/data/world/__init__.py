"""The embedded world: scenes, captions and a reader of drawn images."""
