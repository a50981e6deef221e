"""A small world to try everything on without a download: drawn scenes, true captions, and texts that know more."""
