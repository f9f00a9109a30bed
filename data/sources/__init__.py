"""Sources of labelled images: one module per kind of source."""
