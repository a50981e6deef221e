"""Tools for regions stores: `unimo-ds regions info`, `verify`, `show` and `merge`."""
